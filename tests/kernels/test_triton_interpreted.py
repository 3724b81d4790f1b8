"""The CUDA backends where there is no GPU: their kernels in Triton's interpreter, on CPU tensors."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow(
    reason="the interpreter computes element by element; a GPU computes with the same kernels in test_*_triton.py",
    guards=(
        "foveate/kernels/gates/",
        "foveate/kernels/ulsam/",
        "tests/kernels/gates/gates_triton_interpreted.py",
        "tests/kernels/ulsam/ulsam_triton_interpreted.py",
        "constraints.txt",
    ),
)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton on this system")
def test_the_kernels_in_the_interpreter(interpreted):
    """In a process of its own: the interpreter must be chosen before Triton is imported."""
    interpreted(HERE / "ulsam" / "ulsam_triton_interpreted.py", HERE / "gates" / "gates_triton_interpreted.py")


def test_triton_is_not_imported_before_it_is_needed(run_forked):
    code = """
import sys, torch
import foveate.kernels.gates.triton_launch, foveate.kernels.ulsam.triton_launch
from foveate.attention.cbam import CBAM
from foveate.attention.ulsam import ULSAM
ULSAM(8)(torch.randn(2, 8, 3, 3)).sum().backward()
torch.set_grad_enabled(False)
CBAM(8).eval()(torch.randn(2, 8, 3, 3))
kernels = ("ulsam.triton_forward", "ulsam.triton_backward", "gates.triton_kernels")
sys.exit(any(f"foveate.kernels.{name}" in sys.modules for name in kernels))
"""
    (done,) = run_forked(code)
    assert done.returncode == 0, done.stderr
