"""A small classifier with a picture size and class names of its own, and a record of what must not change."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foveate.surgery.insert import insert


class Small(nn.Module):
    """Two convolutions, global average pooling, one linear layer."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, classes)
        self.unused = nn.Conv2d(3, 3, 1)
        self.pretrained_cfg = {
            "input_size": (3, 32, 32),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "crop_pct": 1.0,
            "label_names": [f"breed {k}" for k in range(classes)],
        }

    def forward(self, x):
        return self.head(self.drop(self.pool(self.body(self.stem(x))).flatten(1)))


def _small():
    torch.manual_seed(0)
    network = Small()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        network.head.weight.normal_()
    return network


@pytest.fixture
def model():
    return _small()


@pytest.fixture(scope="session")
def prepared_once():
    """The network with attention, in a state that is easily disturbed. To be copied."""
    model = insert(_small(), "ulsam after body; se after stem", start="identity")
    model.train()
    model.stem[1].eval()  # a batch norm that is kept frozen
    model.body[0].requires_grad_(False)
    return model


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 40, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _record(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "identity": [id(parameter) for parameter in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [[list(getattr(module, kind).items()) for kind in hooks] for module in model.modules()],
        "names": [name for name, _ in model.named_modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "autograd": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def _same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


@pytest.fixture
def untouched():
    """Gives a function model -> check; the check fails if anything changed in between."""

    def start(model):
        before = _record(model)

        def check():
            after = _record(model)
            changed = [key for key in before if not _same(before[key], after[key])]
            assert not changed

        return check

    return start
