"""The CUDA backends where there is no GPU: their kernels in Triton's interpreter, on CPU tensors."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton on this system")
def test_the_kernels_in_the_interpreter(interpreted):
    """In a process of its own: the interpreter must be chosen before Triton is imported."""
    interpreted(HERE / "ulsam" / "ulsam_triton_interpreted.py", HERE / "gates" / "gates_triton_interpreted.py")


def test_triton_is_not_imported_before_it_is_needed():
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
    subprocess.run([sys.executable, "-c", code], check=True)
