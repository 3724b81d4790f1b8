"""Shared: memory that is NaN before it is written, and Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def nan_memory(monkeypatch):
    """torch.empty and its kin give NaN, so that nothing reads unseen what nothing wrote."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


PROBE = """
import triton, triton.language as tl, torch
@triton.jit
def double(x, SIZE: tl.constexpr):
    for k in range(tl.program_id(0), tl.minimum(SIZE, 4)):
        tl.store(x + k, 2 * tl.load(x + k))
x = torch.ones(4)
double[(1,)](x, SIZE=4)
assert x.tolist() == [2.0] * 4
"""


@pytest.fixture
def interpreted(tmp_path):
    """Runs a file of tests in Triton's interpreter; skips where that cannot run a loop of Triton's own kind."""

    def run(file):
        probe = tmp_path / "probe.py"
        probe.write_text(PROBE)  # Triton reads the source of a kernel
        variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=Path(__file__).parents[2])
        if result.returncode:
            known = subprocess.run([sys.executable, probe], capture_output=True, text=True, env=variables)
            if known.returncode:
                pytest.skip(f"Triton's own interpreter does not run here: {known.stderr.strip().splitlines()[-1]}")
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]

    return run
