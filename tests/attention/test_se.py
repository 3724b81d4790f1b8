"""SE against its equation."""

import pytest
import torch

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.se import SE
from foveate.errors import FoveateError


def test_equals_the_equation():
    torch.manual_seed(0)
    module = SE(32, reduction=4).double()
    x = torch.randn(3, 32, 7, 11, dtype=torch.float64, requires_grad=True)
    z = x.sum((2, 3)) / (7 * 11)
    hidden = torch.einsum("bc,dc->bd", z, module.fc1.weight) + module.fc1.bias
    s = 1 / (1 + torch.exp(-(torch.einsum("bd,cd->bc", hidden.clamp(min=0), module.fc2.weight) + module.fc2.bias)))
    expected = torch.einsum("bchw,bc->bchw", x, s)
    out = module(x)
    assert (out - expected).abs().max() <= 1e-12
    weights = torch.randn_like(out)
    (ours,) = torch.autograd.grad((out * weights).sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), x)
    assert (ours - theirs).abs().max() <= 1e-12
    torch.testing.assert_close(module.attend(x), s)


@pytest.mark.parametrize("bias,params", [(True, 33_312), (False, 32_768)])
def test_cost_at_512(bias, params):
    module = SE(512, bias=bias)
    assert sum(p.numel() for p in module.parameters()) == params
    assert count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs == 32_768
    assert module.paper_cost(512, 14, 14) == (32_768, 32_768)


def test_fewer_channels_than_the_reduction_leave_one_hidden_unit():
    assert SE(8, reduction=16).fc1.out_features == 1


def test_reduction_is_positive():
    with pytest.raises(FoveateError, match="at least 1"):
        SE(8, reduction=0)
