"""What the tests of several mechanisms share: comparison with equations, and watching what a forward pass builds."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


def _randomise(module):
    """Every parameter and statistic as after training, in float64, so that no term of an equation vanishes."""
    module = module.double()
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else 0.5 * torch.randn_like(tensor))
    return module


class _Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, tuple | list) else [result]
        self.most = max([self.most, *(part.numel() for part in parts if isinstance(part, torch.Tensor))])
        return result


def _largest(module, x):
    """Forward and backward."""
    with _Watch() as watch:
        module(x.requires_grad_()).sum().backward()
    return watch.most


@pytest.fixture
def randomise():
    """Gives a module random float64 parameters and statistics."""
    torch.manual_seed(0)
    return _randomise


@pytest.fixture
def largest():
    """The number of elements of the largest tensor that a forward and backward pass builds."""
    return _largest
