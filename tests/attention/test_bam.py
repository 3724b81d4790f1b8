"""BAM against its equations, in the paper's form and in the authors'."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet50

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.bam import BAM
from foveate.errors import FoveateError


def norm(bn, z):
    """A batch norm by hand, of (B, C) or (B, C, h, w)."""
    axes = [axis for axis in range(z.ndim) if axis != 1]
    mean, var = (z.mean(axes), z.var(axes, unbiased=False)) if bn.training else (bn.running_mean, bn.running_var)
    mean, var, weight, bias = (v.reshape(-1, *[1] * (z.ndim - 2)) for v in (mean, var, bn.weight, bn.bias))
    return (z - mean) / torch.sqrt(var + bn.eps) * weight + bias


def of_type(module, kind):
    return [m for m in module.modules() if isinstance(m, kind)]


def equations(m, x):
    hidden = m.norm == "hidden"
    first, second = of_type(m.channel, nn.Linear)
    bns = of_type(m.channel, nn.BatchNorm1d)
    z = x.flatten(2).sum(2) / (x.shape[2] * x.shape[3]) @ first.weight.T + first.bias
    z = (norm(bns[0], z) if hidden else z).clamp(min=0)
    mc = z @ second.weight.T + second.bias
    mc = (mc if hidden else norm(bns[0], mc))[:, :, None, None]
    *inner, last = of_type(m.spatial, nn.Conv2d)
    bns = of_type(m.spatial, nn.BatchNorm2d)
    z = x
    for i, conv in enumerate(inner):
        d = m.dilation if i else 1
        z = F.conv2d(z, conv.weight, conv.bias, padding=d if i else 0, dilation=d)
        z = (norm(bns[i], z) if hidden else z).clamp(min=0)
    ms = torch.einsum("bdhw,d->bhw", z, last.weight[0, :, 0, 0])[:, None] + last.bias
    ms = ms if hidden else norm(bns[0], ms)
    scores = mc + ms if m.combine == "sum" else mc * ms
    return x + x / (1 + torch.exp(-scores))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["hidden", "end"])
@pytest.mark.parametrize("combine", ["sum", "product"])
def test_equals_the_equations(agree, randomise, combine, norm, training):
    module = randomise(BAM(32, reduction=4, combine=combine, norm=norm)).train(training)
    agree(module, equations, torch.randn(3, 32, 7, 11), bound=1e-8)


@pytest.mark.parametrize("dilation", [1, 2])
def test_dilation(agree, randomise, dilation):
    agree(randomise(BAM(16, reduction=4, dilation=dilation)).eval(), equations, torch.randn(2, 16, 9, 4))


def test_the_map_is_what_is_added(randomise):
    module, x = randomise(BAM(16, reduction=4)).eval(), torch.randn(2, 16, 5, 6, dtype=torch.float64)
    attention = module.attend(x)
    assert ((attention > 0) & (attention < 1)).all()
    torch.testing.assert_close(module(x), (1 + attention) * x)


@pytest.mark.parametrize("norm,params", [("hidden", 68_513), ("end", 69_283)])
def test_cost_at_512(norm, params):
    module = BAM(512, norm=norm)
    assert sum(p.numel() for p in module.parameters()) == params
    assert count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs == 6_862_976
    assert module.paper_cost(512, 14, 14) == (83_968, 16_490_496)


def test_resnet50_with_bam_after_three_stages():
    added = sum(p.numel() for c in (256, 512, 1024) for p in BAM(c, combine="product").parameters())
    assert sum(p.numel() for p in resnet50().parameters()) + added == 25_915_099


@pytest.mark.parametrize(
    "options,message",
    [
        ({"combine": "add"}, "combine='add'. does not exist; there are: sum, product"),
        ({"norm": "hiden"}, "did you mean 'hidden'"),
        ({"reduction": 0}, "both are at least 1"),
        ({"dilation": 0}, "both are at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(FoveateError, match=message):
        BAM(16, **options)
