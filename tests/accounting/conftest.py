"""Shared: a small network, and a check that counting leaves a model alone."""

import contextlib

import pytest
import torch
from torch import nn

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class Blocks(nn.Module):
    """At 32 pixels: stage1 gives 8 x 16 x 16, stage2 gives 16 x 8 x 8."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stage1 = nn.Sequential(Block(8, 8), Block(8, 8))
        self.stage2 = nn.Sequential(Block(8, 16, 2), Block(16, 16), Block(16, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


@pytest.fixture
def make_blocks():
    return Blocks


@pytest.fixture
def blocks():
    return Blocks()


@pytest.fixture
def untouched():
    """``with untouched(model):`` fails when weights, modes, hooks, gradients or random numbers differ."""

    def picture(model):
        return {
            "state": {key: value.clone() for key, value in model.state_dict().items()},
            "modes": [module.training for module in model.modules()],
            "hooks": [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()],
            "gradients": [p.grad is None for p in model.parameters()],
            "numbers": torch.get_rng_state(),
        }

    @contextlib.contextmanager
    def check(model):
        before = picture(model)
        yield
        torch.testing.assert_close(picture(model), before, rtol=0, atol=0)

    return check
