"""A2-Net's double attention against its equations."""

import pytest
import torch

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.double import DoubleAttention
from foveate.errors import FoveateError
from foveate.kernels.dispatch import use_fused


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


LARGE = (2, 16, 13, 11), (1, 32, 5, 9), (1, 8, 30, 1), (3, 4, 6, 7)


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [{}, {"c_m": 3, "c_n": 5}, {"c_n": 1}])
def test_fewer_products_give_the_definition(randomise, monkeypatch, shape, memory_format, options):
    module = randomise(DoubleAttention(shape[1], **options)).float().eval()
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    taken = []
    infer = DoubleAttention._infer
    monkeypatch.setattr(DoubleAttention, "_infer", lambda self, x: (taken.append(1), infer(self, x))[1])
    with torch.no_grad():
        fast = module(x)
        with use_fused(False):
            slow = module(x)
        exact = module.double()(x.double())
    assert len(taken) == 1
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.double(), exact, rtol=1e-5, atol=1e-5)
    assert fast.is_contiguous(memory_format=memory_format)
    assert fast.stride() == slow.stride() or 1 in shape


def test_what_wants_another_way_takes_the_definition(randomise, monkeypatch):
    module = randomise(DoubleAttention(8)).float().eval()
    x = torch.randn(2, 8, 12, 12)

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(DoubleAttention, "_infer", never)
    assert module(x).requires_grad
    with torch.no_grad():
        module(x.to(torch.float64).float()[:, :, :1, :1])  # few positions
        module(x[:, :, ::2])  # in neither memory format
        module.train()(x)
        module.eval().phi.register_forward_hook(lambda *_: None)
        module(x)
        other = DoubleAttention(8).eval()
        other.theta.stride = (2, 2)
        other.phi.stride = (2, 2)
        other.rho.stride = (2, 2)
        with pytest.raises(RuntimeError):
            other(x)
        bare = DoubleAttention(8).eval()
        bare.out.bias = None
        bare(x)


def test_what_is_counted_is_the_definition():
    module = DoubleAttention(16).eval()
    assert count_operations(module, (16, 20, 20))[""].macs == (16 * 2 * 4 + 2 * 2 * 2) * 400
