"""The non-local block against its equations, all pairs written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.non_local import FORMS, NonLocal
from foveate.errors import FoveateError


def conv(c, x):
    return (
        x
        if isinstance(c, nn.Identity)
        else torch.einsum("oi,bihw->bohw", c.weight[:, :, 0, 0], x) + c.bias[:, None, None]
    )


def pool(x):
    return F.max_pool2d(x, 2, ceil_mode=True)


def pairs(m, x):
    """f / C, (B, N, N'), and g, (B, N', d)."""
    source = pool(x) if m.sub_sample == "before" else x
    theta, phi, g = conv(m.theta, x), conv(m.phi, source), conv(m.g, source)
    if m.sub_sample == "after":
        phi, g = pool(phi), pool(g)
    theta, phi, g = (z.flatten(2).transpose(1, 2) for z in (theta, phi, g))
    n, s = theta.shape[1], phi.shape[1]
    if m.form == "concat":
        joined = torch.cat([theta[:, :, None].expand(-1, -1, s, -1), phi[:, None].expand(-1, n, -1, -1)], dim=3)
        return (joined @ m.w_f.weight[0]).clamp(min=0) / s, g
    scores = torch.einsum("bnd,bsd->bns", theta, phi)
    if m.form == "dot":
        return scores / s, g
    scores = torch.exp(scores * m.scale)
    return scores / scores.sum(2, keepdim=True), g


def equations(m, x):
    f, g = pairs(m, x)
    y = conv(m.out, (f @ g).transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))
    if isinstance(m.bn, nn.BatchNorm2d):
        mean, var, weight, bias = (
            v[:, None, None] for v in (m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias)
        )
        y = (y - mean) / torch.sqrt(var + m.bn.eps) * weight + bias
    return x + y


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("sub_sample", ["none", "after", "before"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_equations(agree, randomise, form, sub_sample, bn):
    module = randomise(NonLocal(8, form=form, sub_sample=sub_sample, bn=bn)).eval()
    x = 0.5 * torch.randn(2, 8, 7, 11)
    agree(module, equations, x)
    attention = module.attend(x.double())
    size = (7, 11) if sub_sample == "none" else (4, 6)
    assert attention.shape == (2, 77, *size)
    torch.testing.assert_close(attention.flatten(2), pairs(module, x.double())[0])


@pytest.mark.parametrize("form,width", [("embedded_gaussian", 4), ("gaussian", 8)])
def test_scale_is_the_width_of_the_product(agree, randomise, form, width):
    module = randomise(NonLocal(8, form=form, scale=True)).eval()
    assert module.scale == pytest.approx(width**-0.5)
    agree(module, equations, torch.randn(2, 8, 4, 5))


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_starts_as_the_identity(form, bn):
    x = torch.randn(2, 16, 6, 5)
    assert torch.equal(NonLocal(16, form=form, bn=bn).train()(x), x)


@pytest.mark.parametrize("form", FORMS)
def test_forward_builds_no_map_of_all_pairs(largest, form):
    assert largest(NonLocal(8, form=form), torch.randn(1, 8, 24, 24)) < 576**2 // 16


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one_graph_and_exports(form):
    torch.manual_seed(0)
    torch._dynamo.reset()
    module, x = NonLocal(8, form=form, bn=False).eval(), torch.randn(2, 8, 6, 5)
    nn.init.normal_(module.out.weight)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-6)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    other = torch.randn(5, 8, 6, 5)
    torch.testing.assert_close(program.module()(other), module(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form):
    torch.manual_seed(0)
    module, x = NonLocal(8, form=form, bn=False).eval(), torch.randn(2, 8, 6, 5)
    nn.init.normal_(module.out.weight, std=0.3)
    expected = module(x)
    torch.testing.assert_close(module.half()(x.half()).float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("sub_sample", ["after", "before"])
def test_one_place(sub_sample):
    assert NonLocal(8, sub_sample=sub_sample).eval()(torch.randn(2, 8, 1, 1)).isfinite().all()


@pytest.mark.parametrize(
    "options,params,macs",
    [
        ({"bn": False}, 525_568, 102_760_448 + 19_668_992),
        ({}, 526_592, 122_429_440),
        ({"form": "gaussian"}, 263_936, 80_883_712),
        ({"form": "dot"}, 526_592, 102_760_448 + 2 * 196 * 256**2),
        ({"form": "concat"}, 527_104, 102_760_448 + 2 * 196 * 256),
        ({"bn": False, "sub_sample": "after"}, 525_568, 102_760_448 + 19_668_992 // 4),
        ({"bn": False, "sub_sample": "before"}, 525_568, 69_142_528),
    ],
)
def test_cost_at_512(options, params, macs):
    module = NonLocal(512, **options)
    assert sum(p.numel() for p in module.parameters()) == params
    assert count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs == macs


def test_the_papers_formula():
    assert NonLocal(512).paper_cost(512, 14, 14) == (524_288, 102_760_448)


@pytest.mark.parametrize(
    "options,layers",
    [({}, 4), ({"form": "gaussian"}, 2), ({"reduction": 8}, 4), ({"reduction": 8, "form": "gaussian"}, 2)],
)
def test_the_papers_formula_follows_the_options(options, layers):
    """Its count is that of the 1x1 convolutions, without biases, norm and pairs."""
    module = NonLocal(256, **options)
    convolutions = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    assert len(convolutions) == layers
    weights = sum(part.weight.numel() for part in convolutions)
    assert module.paper_cost(256, 14, 7) == (weights, 98 * weights)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"form": "embeded_gaussian"}, "did you mean 'embedded_gaussian'"),
        ({"sub_sample": "both"}, "sub_sample='both'. does not exist; there are: none, after, before"),
        ({"form": "dot", "scale": True}, "scale is for softmax"),
        ({"form": "concat", "scale": True}, "scale is for softmax"),
        ({"reduction": 0}, "at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(FoveateError, match=message):
        NonLocal(16, **options)
