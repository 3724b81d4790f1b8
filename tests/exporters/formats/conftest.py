"""A small network whose attention does something."""

import pytest
import timm
import torch

import foveate as fv

SIZE = 64


def build(plan="", classes=5, name="test_resnet"):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes).eval()
    if plan:
        fv.insert(model, plan, input_size=SIZE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # many attention modules start as the identity
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def network():
    """(plan) -> a network with it."""
    return build


class Odd(torch.nn.Module):
    """An operation that few formats have."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x + torch.cummax(x.flatten(2), 2)[0].reshape(x.shape)


@pytest.fixture
def odd_network(monkeypatch):
    """A network with an operation that no format has, at layer2, behind attention that all of them have."""
    monkeypatch.setattr("foveate.registry._REGISTERED", {})
    fv.register("odd", Odd)
    return build("se after layer1; odd after layer2")
