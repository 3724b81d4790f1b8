"""What the tests of pools share: parameters as after training, and comparison with equations."""

import pytest
import torch


def _randomise(module):
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module


def _agree(module, equations, x, bound=1e-9):
    x = x.double().requires_grad_()
    out, expected = module(x), equations(module, x)
    assert out.shape == expected.shape
    assert (out - expected).abs().max() <= bound
    weights = torch.randn_like(out)
    wanted = [x, *module.parameters()]
    ours = torch.autograd.grad((out * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for key, a, b in zip(["x", *dict(module.named_parameters())], ours, theirs, strict=True):
        assert (a - b).abs().max() <= bound * max(1, b.abs().max()), key


@pytest.fixture
def randomise():
    """Gives a module float64 parameters as after training: a layer scale near 0 hides what stands behind it."""
    torch.manual_seed(0)
    return _randomise


@pytest.fixture
def agree():
    """Compares outputs and all gradients of a module with equations(module, x)."""
    torch.manual_seed(0)
    return _agree
