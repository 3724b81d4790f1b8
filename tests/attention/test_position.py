"""DANet's position attention against its equations."""

import pytest
import torch

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.position import PositionAttention
from foveate.errors import FoveateError


def conv(c, x):
    return torch.einsum("oi,bin->bon", c.weight[:, :, 0, 0], x.flatten(2)) + c.bias[:, None]


def pairs(m, x):
    scores = torch.exp(torch.einsum("bdn,bds->bns", conv(m.query_conv, x), conv(m.key_conv, x)))
    return scores / scores.sum(2, keepdim=True)


def equations(m, x):
    return x + m.gamma * torch.einsum("bns,bcs->bcn", pairs(m, x), conv(m.value_conv, x)).view_as(x)


@pytest.mark.parametrize("reduction", [8, 2, 1])
def test_equals_the_equations(agree, randomise, reduction):
    module, x = randomise(PositionAttention(16, reduction=reduction)), 0.5 * torch.randn(2, 16, 7, 11)
    agree(module, equations, x)
    attention = module.attend(x.double())
    assert attention.shape == (2, 77, 7, 11)
    torch.testing.assert_close(attention.flatten(2), pairs(module, x.double()))


def test_starts_as_the_identity():
    x = torch.randn(2, 16, 6, 5)
    assert torch.equal(PositionAttention(16)(x), x)


def test_positions_may_be_shuffled(randomise):
    module, x = randomise(PositionAttention(16)), torch.randn(2, 16, 6, 5, dtype=torch.float64)
    order = torch.randperm(30)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(module(shuffled), module(x).flatten(2)[:, :, order].view_as(x))


def test_forward_builds_no_map_of_all_pairs(largest):
    assert largest(PositionAttention(8), torch.randn(1, 8, 24, 24)) < 576**2 // 32


def test_cost_at_512():
    module = PositionAttention(512)
    assert sum(p.numel() for p in module.parameters()) == 328_321
    convs, products = (2 * 64 + 512) * 512 * 196, (64 + 512) * 196**2
    assert count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs == convs + products == 86_352_896


def test_reduction_is_positive():
    with pytest.raises(FoveateError, match="at least 1"):
        PositionAttention(16, reduction=0)
