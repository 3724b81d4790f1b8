"""What the tests of several heads share: feature maps of a small network, and parameters as after training."""

import pytest
import torch
from torch import nn

CHANNELS, FEATURES, CLASSES = (8, 12, 16), 16, 5


def _new_inputs(batch=3, sizes=((28, 44), (14, 22), (7, 11)), seed=1, **options):
    """Feature maps of a trunk, and its pooled features."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]
    maps = [torch.randn(shape, generator=generator, dtype=torch.float64).to(**options) for shape in shapes]
    return maps, torch.randn(batch, FEATURES, generator=generator, dtype=torch.float64).to(**options)


def _randomise(module: nn.Module) -> nn.Module:
    """Every parameter and statistic as after training, in float64, so that no term of an equation vanishes."""
    module = module.double()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) / 3)
            if "running_var" in key:
                tensor.copy_(tensor.abs() + 0.5)
    return module


@pytest.fixture
def sizes():
    """Channels of the feature maps, pooled features, classes."""
    return CHANNELS, FEATURES, CLASSES


@pytest.fixture
def new_inputs():
    return _new_inputs


@pytest.fixture
def randomise():
    return _randomise
