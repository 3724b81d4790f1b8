"""Shared: NaN in memory before it is written; Triton's interpreter; modules that are disturbed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import foveate as fv
from foveate import registry
from foveate.attention import se
from foveate.attention.ulsam import ULSAM

CHANNELS = 8
MODULES = [
    *((name, kind) for kind in ("attention", "pooling") for name in registry.names(kind)),
    ("cbam(order='spatial-channel')", "attention"),
    ("attention_pool(classes=3, heads=2)", "pooling"),
    ("timm:eca", "attention"),
    ("timm:ceca", "attention"),
]
FUSED = ("ulsam", "se", "cbam", "bam", "attention_pool", "timm:eca", "timm:ceca")
FUSED += ("double", "non_local", "position", "danet")  # by rows
UNFUSED = pytest.mark.slow(
    reason="nothing but the definition can run of these: they are checked where kernels or definitions change",
    guards=("foveate/kernels/", "foveate/attention/", "foveate/pooling/", "tests/kernels/conftest.py"),
)


@pytest.fixture(autouse=True)
def _small_maps(monkeypatch):
    """SE takes its passes for small maps, too."""
    monkeypatch.setattr(se, "_ELEMENTS", 0)
    monkeypatch.setattr(se, "_POSITIONS", 0)


@pytest.fixture
def nan_memory(monkeypatch):
    """torch.empty and its kin give NaN, so that nothing reads unseen what nothing wrote."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def module():
    """An ULSAM as after training."""
    torch.manual_seed(0)
    built = ULSAM(16, groups=4).eval()
    for key, tensor in built.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else torch.randn_like(tensor))
    return built


@pytest.fixture
def x():
    """An input of ``module``."""
    return torch.randn(2, 16, 6, 5)


def _make(spec, kind):
    torch.manual_seed(0)
    module = registry.build(spec, CHANNELS, kind=kind)
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else 0.5 * torch.randn_like(tensor))
    return module.eval()


def _compute(module, x, training, gradients):
    """Output, gradients of x and of the parameters by name, and what the batch norms keep afterwards."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    modes = [part.training for part in module.modules()]
    if training:
        module.train()
    x = x.clone().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        out = module(x)
        if gradients:
            (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    for part, mode in zip(module.modules(), modes, strict=True):
        part.training = mode
    gradients = [x.grad, *(p.grad for _, p in sorted(module.named_parameters()) if p.grad is not None)] * gradients
    module.zero_grad()
    kept = [t.detach().clone() for part in norms for t in (part.running_mean, part.running_var) if t is not None]
    return [out.detach(), *gradients, *kept]


def _check(spec, kind, disturb, fuse_first):
    """None, or what differs."""
    fused, truth = _make(spec, kind), _make(spec, kind).double()
    x = torch.randn(3, CHANNELS, 5, 6, generator=torch.Generator().manual_seed(2))
    if fuse_first:
        fv.fuse(fused)
        _compute(fused, x, False, False)
    for module in (fused, truth):
        try:
            disturb(module)
        except (ValueError, RuntimeError, AttributeError) as error:
            return f"{disturb.__name__} cannot be done: {error}"
    if not fuse_first and not any(part.training for part in fused.modules()):
        fv.fuse(fused)
    for training, gradients in ((False, False), (False, True), (True, True), (True, False), (False, False)):
        found = _compute(fused, x, training, gradients)
        with fv.use_fused(False):
            expected = _compute(truth, x.double(), training, gradients)
        for a, b in zip(found, expected, strict=True):
            error = (a - b).abs().max() / b.abs().max().clamp(min=1)
            if not error <= 2e-3:
                return f"{disturb.__name__}, training={training}, gradients={gradients}: {error:.2g}"
    return None


@pytest.fixture
def disturbed():
    """``make`` builds a module, ``check`` disturbs it and its double alike and says what differs, or None."""
    return SimpleNamespace(make=_make, check=_check, channels=CHANNELS, modules=MODULES, fused=FUSED)


@pytest.fixture(
    params=[
        pytest.param((spec, kind), id=spec, marks=() if spec.split("(")[0] in FUSED else UNFUSED)
        for spec, kind in MODULES
    ]
)
def any_module(request):
    """Spec and kind of every attention mechanism and pool."""
    return request.param


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
    """Runs files of tests in Triton's interpreter; skips where that cannot run a loop of Triton's own kind."""

    def run(*files):
        probe = tmp_path / "probe.py"
        probe.write_text(PROBE)  # Triton reads the source of a kernel
        variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
        result = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=Path(__file__).parents[2])
        if result.returncode:
            known = subprocess.run([sys.executable, probe], capture_output=True, text=True, env=variables)
            if known.returncode:
                pytest.skip(f"Triton's own interpreter does not run here: {known.stderr.strip().splitlines()[-1]}")
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]

    return run
