"""A2-Net's double attention against its equations."""

import pytest
import torch

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.double import DoubleAttention
from foveate.errors import FoveateError


def conv(c, x):
    return torch.einsum("oi,bin->bon", c.weight[:, :, 0, 0], x) + c.bias[:, None]


def equations(m, x):
    b, _, h, w = x.shape
    rows = x.reshape(b, -1, h * w)
    a = conv(m.phi, rows)
    gather = torch.exp(conv(m.theta, rows))
    gather = gather / gather.sum(2, keepdim=True)  # over positions
    spread = torch.exp(conv(m.rho, rows))
    spread = spread / spread.sum(1, keepdim=True)  # over features
    z = torch.einsum("bmn,bkn,bkp->bmp", a, gather, spread)
    return x + conv(m.out, z).reshape(x.shape)


@pytest.mark.parametrize("options", [{}, {"c_m": 3, "c_n": 5}, {"c_n": 1}])
def test_equals_the_equations(agree, randomise, options):
    agree(randomise(DoubleAttention(32, **options)), equations, torch.randn(3, 32, 7, 11))


def test_each_map_is_a_distribution_over_positions():
    maps = DoubleAttention(32, c_n=5).attend(torch.randn(2, 32, 7, 11))
    assert maps.shape == (2, 5, 7, 11)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 5))


def test_positions_may_be_shuffled(randomise):
    module, x = randomise(DoubleAttention(16)), torch.randn(2, 16, 6, 5, dtype=torch.float64)
    order = torch.randperm(30)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(module(shuffled), module(x).flatten(2)[:, :, order].view_as(x))


def test_no_map_of_all_pairs(largest):
    assert largest(DoubleAttention(8), torch.randn(1, 8, 24, 24)) < 576**2 // 32


def test_cost_at_512():
    module = DoubleAttention(512)
    assert (module.c_m, module.c_n) == (64, 64)
    assert sum(p.numel() for p in module.parameters()) == 131_776
    assert (
        count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs
        == 131_072 * 196 + 2 * 64 * 64 * 196
        == 27_295_744
    )
    assert module.paper_cost(512, 14, 14) == (65_536, 12_845_056)


def test_few_channels_leave_one_of_each():
    module = DoubleAttention(4)
    assert (module.c_m, module.c_n) == (1, 1)


@pytest.mark.parametrize("options", [{"c_m": 0}, {"c_n": -1}])
def test_both_are_positive(options):
    with pytest.raises(FoveateError, match="both are at least 1"):
        DoubleAttention(16, **options)
