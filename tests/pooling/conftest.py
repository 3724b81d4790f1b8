"""What the tests of pools share: parameters as after training, and comparison with equations."""

import pytest
import torch


def _randomise(module):
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module


@pytest.fixture
def randomise():
    """Gives a module float64 parameters as after training: a layer scale near 0 hides what stands behind it."""
    torch.manual_seed(0)
    return _randomise
