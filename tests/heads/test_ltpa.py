"""Learn to Pay Attention against its equations, and what follows from them."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.heads.ltpa import LearnToPayAttention


def equations(head, maps, pooled):
    """Place by place, with V at each place, as the paper writes it."""
    vectors = []
    for level, x in enumerate(maps):
        to_d, to_c = head.feature_maps[level], head.pooled_maps[level]
        places = x.flatten(2).transpose(1, 2)  # (B, N, C)
        local = places if isinstance(to_d, nn.Identity) else places @ to_d.weight.T
        g = to_c(pooled)
        if head.score == "dot":
            c = (local * g[:, None]).sum(2)
        else:
            c = ((local + g[:, None]) * head.compatibility[level].weight[0]).sum(2)
        a = c.exp() / c.exp().sum(1, keepdim=True)
        vectors.append(head.ready[level]((a[:, :, None] * local).sum(1)))
    if head.join == "concat":
        (classify,) = head.classifiers
        return torch.cat(vectors, 1) @ classify.weight.T + classify.bias
    scores = [v @ classify.weight.T + classify.bias for v, classify in zip(vectors, head.classifiers, strict=True)]
    if head.combine == "product":
        return sum(scores)
    return (sum(s.softmax(1) for s in scores) / len(scores)).log()


@pytest.mark.parametrize("regularise", [False, True])
@pytest.mark.parametrize(("join", "combine"), [("concat", "mean"), ("separate", "mean"), ("separate", "product")])
@pytest.mark.parametrize("project", ["features", "pooled"])
@pytest.mark.parametrize("score", ["dot", "parameterised"])
def test_equals_the_equations(new_inputs, randomise, sizes, score, project, join, combine, regularise):
    options = {"score": score, "project": project, "join": join, "combine": combine, "regularise": regularise}
    head = randomise(LearnToPayAttention(*sizes, **options)).eval()
    maps, pooled = new_inputs(sizes=((6, 8), (3, 4), (2, 3)))
    inputs = [m.requires_grad_() for m in [*maps, pooled]]
    out, expected = head(maps, pooled), equations(head, maps, pooled)
    assert (out - expected).abs().max() <= 1e-9
    weights, wanted = torch.randn_like(out), [*inputs, *head.parameters()]
    ours = torch.autograd.grad((out * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-9


def test_scores_of_separate_classifiers_are_the_log_of_the_mean_probability(new_inputs, randomise, sizes):
    head = randomise(LearnToPayAttention(*sizes, join="separate"))
    assert (head(*new_inputs()).exp().sum(1) - 1).abs().max() <= 1e-12


def test_separate_classifiers_survive_scores_of_any_size(new_inputs, randomise, sizes):
    head = randomise(LearnToPayAttention(*sizes, join="separate"))
    with torch.no_grad():
        for classify in head.classifiers:
            classify.weight *= 1e4
    scores = head(*new_inputs())
    assert scores.isfinite().all()
    assert scores.min() < -1000  # a probability that is 0 in any floating-point format


@pytest.mark.parametrize("score", ["dot", "parameterised"])
def test_each_map_sums_to_1_and_places_alike_get_the_same(new_inputs, randomise, sizes, score):
    head = randomise(LearnToPayAttention(*sizes, score=score))
    maps, pooled = new_inputs()
    for attention in head.attend(maps, pooled):
        assert (attention.sum((1, 2)) - 1).abs().max() <= 1e-12
        assert attention.std() > 0
    alike = [m.mean((2, 3), keepdim=True).expand_as(m) for m in maps]
    for attention in head.attend(alike, pooled):
        assert (attention * attention[0].numel() - 1).abs().max() <= 1e-12


def test_local_features_equal_to_g_give_a_uniform_map():
    head, g = LearnToPayAttention((6,), 6, 3).double(), torch.randn(2, 6, dtype=torch.float64)
    (attention,) = head.attend([g[:, :, None, None].expand(2, 6, 4, 5)], g)
    assert (attention - 1 / 20).abs().max() <= 1e-12


def test_dot_looks_where_g_points():
    head, x, g = LearnToPayAttention((4,), 4, 3), torch.zeros(1, 4, 3, 3), torch.tensor([[0.0, 9.0, 0.0, 0.0]])
    x[0, 1, 2, 0] = x[0, 2, 1, 1] = 1  # only the first is along g
    (attention,) = head.attend([x], g)
    assert attention.argmax() == 2 * 3 + 0
    assert attention.max() > 0.99


def test_g_asks_in_dot_and_has_no_say_in_parameterised(new_inputs, randomise, sizes):
    for score, moved in (("dot", True), ("parameterised", False)):
        head = randomise(LearnToPayAttention(*sizes, score=score))
        maps, pooled = new_inputs()
        pooled.requires_grad_()
        scores = head(maps, pooled)
        (gradient,) = torch.autograd.grad(scores.square().sum(), pooled)
        assert bool(gradient.abs().max() > 1e-3) is moved
        assert bool((head(maps, -pooled) - scores).abs().max() > 1e-3) is moved


def trunk_of_the_vgg() -> nn.Sequential:
    """The VGG of the paper's att3 networks; max-pools follow the three taps and each of the last two convolutions."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in itertools.pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.Linear(512, 512))


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"score": "parameterised"}, 19_993_764), ({"score": "dot"}, 19_992_228)],
)
def test_parameters_of_the_vgg_with_three_taps(options, expected):
    with torch.device("meta"):
        trunk, head = trunk_of_the_vgg(), LearnToPayAttention((256, 512, 512), 512, 100, **options)
    assert sum(p.numel() for part in (trunk, head) for p in part.parameters()) == expected


@pytest.mark.parametrize(
    ("options", "params", "macs"),
    [
        ({}, 9_290_728, 13_840_384),
        ({"score": "parameterised"}, 9_296_872, 13_846_528),
        ({"join": "separate"}, 9_292_728, 13_840_384),
        ({"project": "pooled"}, 6_730_728, 8_134_656),
        ({"regularise": True}, 9_303_016, 13_840_384),
    ],
)
def test_cost(options, params, macs):
    channels, pixels = (512, 1024, 2048), (28, 14, 7)
    with torch.device("meta"):
        head = LearnToPayAttention(channels, 2048, 1000, **options).eval()
        maps = [torch.empty(1, c, n, n) for c, n in zip(channels, pixels, strict=True)]
        with FlopCounterMode(display=False) as counter:
            head(maps, torch.empty(1, 2048))
    assert sum(p.numel() for p in head.parameters()) == params
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "dott"}, "did you mean 'dot'"),
        ({"join": "both"}, "join='both'. does not exist; there are: concat, separate"),
        ({"project": "feature"}, "did you mean 'features'"),
        ({"combine": "sum"}, "there are: mean, product"),
    ],
)
def test_errors(sizes, options, message):
    with pytest.raises(FoveateError, match=message):
        LearnToPayAttention(*sizes, **options)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_forward_sees_is_what_the_maps_of_dot_weigh(new_inputs, randomise, sizes, memory_format):
    head = randomise(LearnToPayAttention(*sizes, project="pooled"))
    maps, pooled = new_inputs()
    maps = [x.contiguous(memory_format=memory_format) for x in maps]
    seen = [torch.einsum("bchw,bhw->bc", x, a) for x, a in zip(maps, head.attend(maps, pooled), strict=True)]
    (classify,) = head.classifiers
    assert (head(maps, pooled) - classify(torch.cat(seen, 1))).abs().max() <= 1e-12


def test_products_beyond_the_range_of_float16_are_no_matter():
    head = LearnToPayAttention((64,), 64, 3).half().eval()
    x = torch.full((1, 64, 2, 2), 40.0, dtype=torch.float16)
    with torch.no_grad():
        assert head([x], x[:, :, 0, 0]).isfinite().all()  # 64 * 40 * 40 > 65504
