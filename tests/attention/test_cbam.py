"""CBAM against its equations, and its ablations against their published sizes."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import resnet50

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.cbam import CBAM
from foveate.errors import FoveateError


def sigmoid(z):
    return 1 / (1 + torch.exp(-z))


def channel_map(m, x, pools=("avg", "max")):
    def mlp(v):
        return (v @ m.fc1.weight.T + m.fc1.bias).clamp(min=0) @ m.fc2.weight.T + m.fc2.bias

    pooled = {"avg": x.flatten(2).mean(2), "max": x.flatten(2).max(2).values}
    return sigmoid(sum(mlp(pooled[pool]) for pool in pools))[:, :, None, None]


def spatial_map(m, x):
    planes = torch.stack([x.max(1).values, x.mean(1)], 1) if m.squeeze is None else F.conv2d(x, m.squeeze.weight)
    scores = F.conv2d(planes, m.conv.weight, padding=m.kernel_size // 2)
    bn = m.bn
    scores = (scores - bn.running_mean) / torch.sqrt(bn.running_var + bn.eps) * bn.weight + bn.bias
    return sigmoid(scores)


def make(**options):
    torch.manual_seed(0)
    module = CBAM(16, reduction=4, **options).double().eval()
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else torch.randn_like(tensor))
    return module


@pytest.mark.parametrize("spatial", ["pool", "conv"])
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("order", ["channel-spatial", "spatial-channel", "parallel", "channel", "spatial"])
def test_equals_the_equations(order, kernel_size, spatial):
    m = make(order=order, kernel_size=kernel_size, spatial=spatial)
    x = torch.randn(3, 16, 7, 11, dtype=torch.float64, requires_grad=True)
    if order == "channel":
        expected = channel_map(m, x) * x
    elif order == "spatial":
        expected = spatial_map(m, x) * x
    elif order == "parallel":
        expected = channel_map(m, x) * spatial_map(m, x) * x
    elif order == "channel-spatial":
        refined = channel_map(m, x) * x
        expected = spatial_map(m, refined) * refined
    else:
        refined = spatial_map(m, x) * x
        expected = channel_map(m, refined) * refined
    out = m(x)
    assert (out - expected).abs().max() <= 1e-12
    torch.testing.assert_close(m.attend(x) * x, out)
    weights = torch.randn_like(out)
    (ours,) = torch.autograd.grad((out * weights).sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), x)
    assert (ours - theirs).abs().max() <= 1e-10


@pytest.mark.parametrize("channel_pool,pools", [("avg", ("avg",)), ("max", ("max",)), ("both", ("avg", "max"))])
def test_channel_pools(channel_pool, pools):
    m = make(order="channel", channel_pool=channel_pool)
    x = torch.randn(3, 16, 7, 11, dtype=torch.float64)
    assert (m(x) - channel_map(m, x, pools) * x).abs().max() <= 1e-12


def test_cost_at_512():
    module = CBAM(512)
    assert sum(p.numel() for p in module.parameters()) == 33_412
    assert count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs == 84_744  # the MLP runs twice
    assert module.paper_cost(512, 14, 14) == (32_866, 51_976)


@pytest.mark.parametrize(
    "options,expected",
    [
        ({"order": "parallel", "reduction": 8}, (1024 + 98, 1024 + 98 * 35)),
        ({"order": "channel"}, (512, 512)),
        ({"order": "spatial"}, (98, 98 * 35)),
        ({"order": "spatial", "kernel_size": 3}, (18, 18 * 35)),
        ({"order": "spatial", "spatial": "conv"}, (64 + 49, (64 + 49) * 35)),
    ],
)
def test_the_papers_formula_follows_the_options(options, expected):
    assert CBAM(64, **options).paper_cost(64, 5, 7) == expected


@pytest.mark.parametrize(
    "options,params",
    [
        ({}, 28_089_624),
        ({"order": "channel"}, 28_088_024),
        ({"kernel_size": 3}, 28_088_344),
        ({"spatial": "conv", "kernel_size": 3}, 28_103_304),
        ({"spatial": "conv"}, 28_103_944),
    ],
)
def test_resnet50_with_cbam_in_every_block(options, params):
    network = resnet50()
    blocks = [b for layer in (network.layer1, network.layer2, network.layer3, network.layer4) for b in layer]
    added = sum(p.numel() for b in blocks for p in CBAM(b.conv3.out_channels, **options).parameters())
    assert sum(p.numel() for p in network.parameters()) + added == params


@pytest.mark.parametrize(
    "options,message",
    [
        ({"order": "chanel-spatial"}, "did you mean 'channel-spatial'"),
        ({"channel_pool": "mean"}, "channel_pool='mean'. does not exist"),
        ({"spatial": "x"}, "spatial='x'. does not exist"),
        ({"kernel_size": 4}, "the kernel odd"),
    ],
)
def test_errors(options, message):
    with pytest.raises(FoveateError, match=message):
        CBAM(16, **options)
