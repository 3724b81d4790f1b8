"""A network for 8 bits: three layers and a classifier."""

import pytest
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU())
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.last(self.block(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="session")
def small_network():
    """() -> a new one."""
    return Small
