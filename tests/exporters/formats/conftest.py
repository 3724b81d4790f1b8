"""A small network whose attention does something."""

import pytest
import timm
import torch

import foveate as fv

SIZE = 64


@pytest.fixture(scope="session")
def network(randomised):
    """(plan) -> a network with it."""

    def build(plan="", classes=5, name="test_resnet"):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=classes).eval()
        return randomised(fv.insert(model, plan, input_size=SIZE) if plan else model)

    return build


class Odd(torch.nn.Module):
    """An operation that few formats have."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x + torch.cummax(x.flatten(2), 2)[0].reshape(x.shape)


@pytest.fixture
def odd_network(network, monkeypatch):
    """A network with an operation that no format has, at layer2, behind attention that all of them have."""
    monkeypatch.setattr("foveate.registry._REGISTERED", {})
    fv.register("odd", Odd)
    return network("se after layer1; odd after layer2")
