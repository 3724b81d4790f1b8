"""The CUDA backend where there is no GPU: when it is taken, and why not."""

import logging
import sys
from pathlib import Path

import pytest
import torch

from foveate.kernels import dispatch as backends
from foveate.kernels.ulsam import triton_launch as ulsam_triton

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def asked_for_the_first_time():
    caches = (ulsam_triton.why_not, ulsam_triton._log, backends.ready)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    "capabilities,dtype,reason",
    [
        ([], torch.float32, "no CUDA device"),
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
            assert reason in ulsam_triton.why_not(dtype)
            assert not backends.ready("cuda", dtype).backend
            assert reason in backends.ready("cuda", dtype).reason
            ulsam_triton.why_not.cache_clear()
    (line,) = caplog.messages
    assert reason in line


def test_types_that_cuda_takes(monkeypatch):
    monkeypatch.setattr(ulsam_triton, "why_not", lambda dtype: "")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert backends.ready("cuda", dtype).backend
    assert not backends.ready("cuda", torch.float64).backend
    assert not backends.ready("mps", torch.float32).backend
