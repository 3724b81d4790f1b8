"""Small trunks, hierarchical and columnar, and comparison of a module with its equations."""

import pytest
import timm
import torch
from torch import nn


class Column(nn.Module):
    """A trunk whose maps all have one size, as timm's own tell of themselves."""

    def __init__(self, depth=6, channels=8, stride=16):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride, 1)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1)) for _ in range(depth)))
        self.feature_info = [{"num_chs": channels, "reduction": stride, "module": f"blocks.{k}"} for k in range(depth)]

    def forward_intermediates(self, x, indices, stop_early, intermediates_only):
        assert stop_early
        assert intermediates_only
        x = self.stem(x)
        maps = []
        for k, block in enumerate(self.blocks):
            x = x + block(x)
            if k in indices:
                maps.append(x)
        return maps


def _make_trunk(kind):
    torch.manual_seed(0)
    if kind == "column":
        return Column()
    return timm.create_model("mobilenetv2_035", features_only=kind == "features only", num_classes=5)


def _randomise(module):
    """Every parameter and statistic as after training, in float64, without dropout."""
    torch.manual_seed(0)
    module = module.double().eval()
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else 0.2 * torch.randn_like(tensor))
    return module


def _agree(module, inputs, ours, expected):
    """Outputs, and gradients of the inputs and of every parameter, <= 1e-9."""
    ours, expected = (out if isinstance(out, tuple) else (out,) for out in (ours, expected))
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-9 * max(1, b.abs().max())
    weights = [torch.randn_like(a) for a in ours]
    wanted = [*inputs, *module.parameters()]
    gradients = [
        torch.autograd.grad(sum((out * w).sum() for out, w in zip(outs, weights, strict=True)), wanted)
        for outs in (ours, expected)
    ]
    for key, a, b in zip([*map(str, range(len(inputs))), *dict(module.named_parameters())], *gradients, strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(1, b.abs().max()), key


@pytest.fixture
def column():
    return Column


@pytest.fixture
def make_trunk():
    return _make_trunk


@pytest.fixture
def randomise():
    return _randomise


@pytest.fixture
def agree():
    return _agree
