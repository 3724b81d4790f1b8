"""Shared: small networks, images made here, and a picture of all that surgery must leave alone."""

import contextlib
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import foveate as fv

torch.set_num_threads(1)


class Blocks(nn.Module):
    """A few residual blocks: the smallest network with stages, a shape-changing block and a classifier."""

    class Block(nn.Module):
        def __init__(self, before, after, stride=1):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
            self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
            self.same = stride == 1 and before == after

        def forward(self, x):
            out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (out + x if self.same else out).relu()

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stage1 = nn.Sequential(self.Block(8, 8), self.Block(8, 8))
        self.stage2 = nn.Sequential(self.Block(8, 16, 2), self.Block(16, 16), self.Block(16, 16))
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


def trained(model):
    """Batch norms as after training: with statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) / 10)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return trained(Blocks()).eval()


@pytest.fixture
def make_blocks():
    return lambda **options: trained(Blocks(**options)).eval()


@pytest.fixture
def mobilenet():
    torch.manual_seed(0)
    return trained(timm.create_model("mobilenetv2_035", num_classes=10)).eval()


@pytest.fixture
def images():
    """Three images of 64 pixels with edges, gradients and texture."""
    y, x = torch.meshgrid(torch.linspace(-2, 2, 64), torch.linspace(-2, 2, 64), indexing="ij")
    made = [(x * y).sin(), ((x**2 + y**2) < 1.5).float(), (7 * x).cos() * y]
    return torch.stack([torch.stack([image, image.flip(0), image.T]) for image in made])


def plainly(value):
    return value if isinstance(value, int | float | str | bool | tuple | type(None)) else id(value)


def picture(model):
    """All that a caller could notice: keys in order, values, modules, attributes, hooks, modes, gradients, numbers."""
    modules = {}
    for name, module in model.named_modules():
        held = {
            key: [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else plainly(value)
            for key, value in vars(module).items()
        }
        modules[name] = (id(module), type(module), held)
    return {
        "keys": list(model.state_dict()),
        "values": {key: value.clone() for key, value in model.state_dict().items()},
        "modules": modules,
        "order": list(modules),
        "modes": [module.training for module in model.modules()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "torch": torch.get_rng_state().clone(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),
    }


def assert_same_picture(before, after):
    for part, was in before.items():
        now = after[part]
        if part == "values":
            assert all(torch.equal(was[key], now[key]) and was[key].dtype == now[key].dtype for key in was)
        elif part == "gradients":
            assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(was, now, strict=True))
        elif part == "torch":
            assert torch.equal(was, now)
        elif part == "numpy":
            assert (was == now).all()
        else:
            assert was == now, part


@pytest.fixture
def untouched():
    """``with untouched(model):`` fails when the model or a random number generator is not as before."""

    @contextlib.contextmanager
    def check(model):
        before = picture(model)
        yield
        assert_same_picture(before, picture(model))

    return check


def make_resnet():
    torch.manual_seed(0)
    return trained(timm.create_model("test_resnet", num_classes=10)).eval()


def make_planned():
    """A timm network with a plan of every sort, none of it at its start; the same each time."""
    plan = "ulsam(groups=2) after layer2; se(start='identity') replacing layer1.0; cbam after layer3"
    model = fv.insert(make_resnet(), plan, seed=7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.3)
    return model


@pytest.fixture
def resnet():
    return make_resnet()


@pytest.fixture
def planned():
    return make_planned()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    return fv.save(make_planned(), tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    """A folder of one's own that holds ``planned``, saved."""
    return Path(shutil.copytree(saved, tmp_path / "saved"))
