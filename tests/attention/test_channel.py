"""DANet's channel attention against its equations, in the paper's form and in the authors'."""

import pytest
import torch

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.channel import ChannelAttention
from foveate.errors import FoveateError


def weights(m, x):
    energy = torch.einsum("bcn,bdn->bcd", x.flatten(2), x.flatten(2))
    if m.form == "farthest":  # as the authors write it, the row's maximum first
        energy = energy.max(dim=2, keepdim=True).values - energy
    energy = torch.exp(energy - energy.max(dim=2, keepdim=True).values)
    return energy / energy.sum(2, keepdim=True)


def equations(m, x):
    return x + m.gamma * torch.einsum("bcd,bdn->bcn", weights(m, x), x.flatten(2)).view_as(x)


@pytest.mark.parametrize("form", ["nearest", "farthest"])
def test_equals_the_equations(agree, randomise, form):
    module, x = randomise(ChannelAttention(12, form=form)), 0.3 * torch.randn(2, 12, 7, 11)
    agree(module, equations, x)
    torch.testing.assert_close(module.attend(x.double()), weights(module, x.double()))


@pytest.mark.parametrize("form,largest", [("nearest", 1), ("farthest", 2)])
def test_which_channel_weighs_most(form, largest):
    first = torch.randn(1, 1, 4, 4)
    x = torch.cat([first, 2 * first, -first], dim=1)  # channel 1 is the most like channel 0, channel 2 the least
    assert ChannelAttention(3, form=form).attend(x)[0, 0].argmax() == largest


def test_energies_beyond_the_range_of_half_precision():
    torch.manual_seed(0)
    module, x = ChannelAttention(4), 4 * torch.randn(1, 4, 96, 96)
    torch.nn.init.ones_(module.gamma)
    assert (x.flatten(2) @ x.flatten(2).transpose(1, 2)).max() > torch.finfo(torch.float16).max
    expected = module(x)
    torch.testing.assert_close(module.half()(x.half()).float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("form", ["nearest", "farthest"])
def test_starts_as_the_identity(form):
    x = torch.randn(2, 16, 6, 5)
    assert torch.equal(ChannelAttention(16, form=form)(x), x)


@pytest.mark.parametrize("form", ["nearest", "farthest"])
def test_cost_at_512(form):
    module = ChannelAttention(512, form=form)
    assert sum(p.numel() for p in module.parameters()) == 1
    assert count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs == 2 * 512**2 * 196 == 102_760_448


def test_unknown_form():
    with pytest.raises(FoveateError, match="did you mean 'farthest'"):
        ChannelAttention(16, form="furthest")
