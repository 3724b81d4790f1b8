"""DANet's pair against its two parts."""

import pytest
import torch

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.channel import ChannelAttention
from foveate.attention.danet import DANet
from foveate.attention.position import PositionAttention
from foveate.errors import FoveateError


def equations(m, x):
    flat = x.flatten(2)

    def conv(c):
        return torch.einsum("oi,bin->bon", c.weight[:, :, 0, 0], flat) + c.bias[:, None]

    p = m.position
    q, k, v = conv(p.query_conv), conv(p.key_conv), conv(p.value_conv)
    positions = torch.einsum("bdn,bds->bns", q, k).softmax(2)
    energy = torch.einsum("bcn,bdn->bcd", flat, flat)
    channels = (energy if m.channel.form == "nearest" else -energy).softmax(2)
    both = p.gamma * torch.einsum("bns,bcs->bcn", positions, v) + m.channel.gamma * channels @ flat
    return (2 if m.residual == "each" else 1) * x + both.view_as(x)


@pytest.mark.parametrize("residual", ["each", "once"])
@pytest.mark.parametrize("form", ["nearest", "farthest"])
def test_equals_the_equations(agree, randomise, form, residual):
    module = randomise(DANet(16, reduction=4, form=form, residual=residual))
    agree(module, equations, 0.3 * torch.randn(2, 16, 7, 11))


def test_is_the_sum_of_the_two_mechanisms(randomise):
    module, x = randomise(DANet(16)), torch.randn(2, 16, 6, 5, dtype=torch.float64)
    position, channel = PositionAttention(16).double(), ChannelAttention(16).double()
    position.load_state_dict(module.position.state_dict())
    channel.load_state_dict(module.channel.state_dict())
    torch.testing.assert_close(module(x), position(x) + channel(x))
    torch.testing.assert_close(module.attend(x), position.attend(x))


@pytest.mark.parametrize("residual,times", [("each", 2), ("once", 1)])
def test_start(residual, times):
    x = torch.randn(2, 16, 6, 5)
    assert torch.equal(DANet(16, residual=residual)(x), times * x)


def test_cost_at_512():
    module = DANet(512)
    assert sum(p.numel() for p in module.parameters()) == 328_322
    assert count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs == 86_352_896 + 102_760_448


@pytest.mark.parametrize(
    "options,message",
    [
        ({"residual": "both"}, "residual='both'. does not exist; there are: each, once"),
        ({"form": "near"}, "did you mean 'nearest'"),
        ({"reduction": 0}, "at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(FoveateError, match=message):
        DANet(16, **options)
