"""Networks that are small as graphs: one convolution for each attention module."""

import pytest
import torch
from torch import nn

import foveate as fv

SIZE = 64


class Blocks(nn.Module):
    """Blocks of one convolution each."""

    def __init__(self, count):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=4)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(count))
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def build(specs, **options):
    torch.manual_seed(0)
    plan = "; ".join(f"{spec} after blocks.{number}" for number, spec in enumerate(specs))
    return fv.insert(Blocks(len(specs)), plan, input_size=SIZE, **options).eval()


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def blocks():
    """(specs, options of insert) -> a network with each after a block of its own."""
    return build


@pytest.fixture(scope="session")
def randomised():
    """(model) -> it, with other weights: many attention modules start as the identity."""
    return randomise
