"""The CUDA backend where there is no GPU: its kernels in Triton's interpreter, and when it is taken."""

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foveate.kernels import dispatch as backends
from foveate.kernels.ulsam import triton_launch as ulsam_triton

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def asked_for_the_first_time():
    caches = (ulsam_triton.available, ulsam_triton._say, backends.is_ready)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton on this system")
def test_the_kernels_in_the_interpreter(interpreted):
    """In a process of its own: the interpreter must be chosen before Triton is imported."""
    interpreted(HERE / "ulsam_triton_interpreted.py")


def test_triton_is_not_imported_before_it_is_needed():
    code = (
        "import sys, torch; from foveate.attention.ulsam import ULSAM; import foveate.kernels.ulsam.triton_launch;"
        "ULSAM(8)(torch.randn(2, 8, 3, 3)).sum().backward();"
        "sys.exit(any(f'foveate.kernels.ulsam.triton_{part}' in sys.modules for part in ('forward', 'backward')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "capabilities,dtype,reason",
    [
        ([], torch.float32, "capability"),
        ([(9, 0), (6, 1)], torch.float32, "capability"),
        ([(7, 5)], torch.bfloat16, "capability"),
        ([(7, 5)], torch.float16, "triton"),
        ([(9, 0)], torch.float32, "triton"),
    ],
)
def test_without_a_device_or_triton_one_line_says_so(monkeypatch, caplog, capabilities, dtype, reason):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda k: capabilities[k])
    monkeypatch.setitem(sys.modules, "triton", None)
    for part in ("forward", "backward"):
        monkeypatch.delitem(sys.modules, f"foveate.kernels.ulsam.triton_{part}", raising=False)
    with caplog.at_level(logging.INFO, logger="foveate"):
        for _ in range(3):
            assert not ulsam_triton.available(dtype)
            assert not backends.is_ready("cuda", dtype)
            ulsam_triton.available.cache_clear()
    (line,) = caplog.messages
    assert reason in line


def test_types_that_cuda_takes(monkeypatch):
    monkeypatch.setattr(ulsam_triton, "available", lambda dtype: True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert backends.is_ready("cuda", dtype)
    assert not backends.is_ready("cuda", torch.float64)
    assert not backends.is_ready("mps", torch.float32)
