"""SAOL against its equations, and its two losses against theirs."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.heads.saol import SpatiallyAttentiveOutput

SMALL = ((8, 12), (4, 6), (2, 3))


def hidden(block, x):
    conv, norm, _ = block[:3]
    mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    y = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
    y = (y - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    return y.clamp_min(0)


def resized(x, times):
    """Bilinear, half-pixel centres: of a block of an even size, the mean of the four places at its centre."""
    middle = times // 2
    rows = (x[:, :, middle - 1 :: times] + x[:, :, middle::times]) / 2
    return (rows[:, :, :, middle - 1 :: times] + rows[:, :, :, middle::times]) / 2


def equations(head, maps):
    """A (B, h, w), Y (B, K, h, w) and y (B, K) for feature maps of 4, 2 and 1 times the last one's size."""
    scores = torch.einsum("c,bchw->bhw", head.map[3].weight[0, :, 0, 0], hidden(head.map, maps[-1])).exp()
    a = scores / scores.sum((1, 2), keepdim=True)
    parts = [hidden(reduce, x) for reduce, x in zip(head.reduce, maps, strict=True)]
    joined = torch.cat([resized(parts[0], 4), resized(parts[1], 2), parts[2]], 1)
    logits = torch.einsum("kc,bchw->bkhw", head.places.weight[:, :, 0, 0], joined) + head.places.bias[:, None, None]
    y = logits.exp() / logits.exp().sum(1, keepdim=True)
    return a, y, torch.einsum("bhw,bkhw->bk", a, y)


def test_equals_the_equations(new_inputs, randomise, sizes):
    head = randomise(SpatiallyAttentiveOutput(*sizes, width=8)).eval()
    maps, pooled = new_inputs(sizes=SMALL)
    maps = [m.requires_grad_() for m in maps]
    out, (a, y, probabilities) = head(maps, pooled), equations(head, maps)
    assert (out.exp() - probabilities).abs().max() <= 1e-9
    assert (head.attend(maps, pooled)[0] - a).abs().max() <= 1e-9
    assert (head.spatial_probabilities(maps) - y).abs().max() <= 1e-9
    weights, wanted = torch.randn_like(out), [*maps, *head.parameters()]
    ours = torch.autograd.grad((out * weights).sum(), wanted)
    theirs = torch.autograd.grad((probabilities.log() * weights).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-9


def test_probabilities_sum_to_1_and_their_cross_entropy_is_the_likelihood(new_inputs, randomise, sizes):
    head = randomise(SpatiallyAttentiveOutput(*sizes)).eval()
    maps, pooled = new_inputs()
    scores, labels = head(maps, pooled), torch.tensor([0, 4, 2])
    assert (scores.exp().sum(1) - 1).abs().max() <= 1e-12
    assert (scores.softmax(1) - scores.exp()).abs().max() <= 1e-12
    assert (head.attend(maps, pooled)[0].sum((1, 2)) - 1).abs().max() <= 1e-12
    assert (head.spatial_probabilities(maps).sum(1) - 1).abs().max() <= 1e-12
    torch.testing.assert_close(F.cross_entropy(scores, labels), -scores[range(3), labels].mean())


def test_a_uniform_map_gives_the_mean_of_the_places(new_inputs, randomise, sizes):
    head = randomise(SpatiallyAttentiveOutput(*sizes)).eval()
    nn.init.zeros_(head.map[3].weight)
    maps, pooled = new_inputs()
    mean = head.spatial_probabilities(maps).mean((2, 3))
    assert (head(maps, pooled).exp() - mean).abs().max() <= 1e-12


def test_a_map_that_points_to_one_place_gives_what_that_place_sees(new_inputs, randomise, sizes):
    head = randomise(SpatiallyAttentiveOutput(*sizes)).eval()
    with torch.no_grad():
        head.map[3].weight *= 1e4
    maps, pooled = new_inputs()
    scores, places = head(maps, pooled), head.spatial_probabilities(maps).flatten(2)
    assert scores.isfinite().all()
    at = head.attend(maps, pooled)[0].flatten(1).argmax(1)
    torch.testing.assert_close(scores.exp(), places[torch.arange(3), :, at])


@pytest.mark.parametrize(
    ("options", "params"),
    [
        ({}, 2_213_096),
        ({"width": 64}, 554_024),
        ({"distillation": 1.0}, 2_213_096 + 2_049_000),
        ({"self_supervision": 1.0}, 2_213_096 + 2_049),
    ],
)
def test_cost(options, params):
    channels, pixels = (512, 1024, 2048), (28, 14, 7)
    with torch.device("meta"):
        head = SpatiallyAttentiveOutput(channels, 2048, 1000, **options).eval()
        maps = [torch.empty(1, c, n, n) for c, n in zip(channels, pixels, strict=True)]
        with FlopCounterMode(display=False) as counter:
            head(maps, torch.empty(1, 2048))
    w, k, places = head.places.in_channels // 3, 1000, 7 * 7
    per_level = sum(w * c * n * n for c, n in zip(channels, pixels, strict=True))
    assert sum(p.numel() for p in head.parameters()) == params
    # The losses' layers do not run in eval mode.
    assert counter.get_total_flops() == 2 * (per_level + (3 * w * k + w * 2048 + w) * places)


# The two losses. BatchNorm stays in eval mode, so that the equations above hold.


def training(head):
    head.train()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return head


@pytest.fixture
def trainable(randomise, sizes):
    def built(**options):
        return training(randomise(SpatiallyAttentiveOutput(*sizes, width=8, **options)))

    return built


LABELS = torch.tensor([4, 0, 2])


def agree(loss, expected, head):
    assert (loss - expected).abs() <= 1e-9
    ours = torch.autograd.grad(loss, list(head.parameters()), allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(expected, list(head.parameters()), allow_unused=True)
    for one, other, (key, _) in zip(ours, theirs, head.named_parameters(), strict=True):
        assert (one is None) == (other is None), key
        assert one is None or (one - other).abs().max() <= 1e-9, key


def kl(p, q, axis=1):
    return (p * (p / q).log()).sum(axis)


def negative_log(probabilities, labels):
    return -probabilities[range(len(labels)), labels].log().mean()


def test_without_the_two_losses_it_is_the_cross_entropy(new_inputs, trainable):
    head, (maps, pooled) = trainable(), new_inputs(sizes=SMALL)
    images = torch.randn(3, 3, 8, 8)
    assert head.training_images(images) is images
    scores = head(maps, pooled)
    assert head.kept is None
    assert torch.equal(head.training_loss(scores, LABELS, 0.1), F.cross_entropy(scores, LABELS, label_smoothing=0.1))


@pytest.mark.parametrize("teacher", ["saol", "gap"])
def test_distillation_equals_the_equations(new_inputs, trainable, teacher):
    head, (maps, pooled) = trainable(distillation=0.7, teacher=teacher), new_inputs(sizes=SMALL)
    loss = head.training_loss(head(maps, pooled), LABELS, 0.0)
    y = equations(head, maps)[2]
    gap = (pooled @ head.gap.weight.T + head.gap.bias).softmax(1)
    same = kl(y.detach(), gap) if teacher == "saol" else kl(gap.detach(), y)
    expected = negative_log(y, LABELS) + 0.7 * (same.mean() + 0.5 * negative_log(gap, LABELS))
    agree(loss, expected, head)


def test_divergences_of_a_small_example():
    from foveate.heads.saol import _divergence

    p, q = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    torch.testing.assert_close(_divergence(p.log(), q.log()), torch.tensor([by_hand], dtype=torch.float64))
    assert _divergence(p.log(), p.log()) == 0


def doubled(maps, mixed, pooled, other):
    return [torch.cat(pair) for pair in zip(maps, mixed, strict=True)], torch.cat([pooled, other])


def test_self_supervision_equals_the_equations(new_inputs, trainable):
    head = trainable(self_supervision=0.3, distillation=0.7)
    torch.manual_seed(3)
    images = torch.randn(3, 3, 16, 24)
    both = head.training_images(images)
    inside = (both[3:] != images).any(1)[0].double()  # (16, 24)
    assert 0 < inside.mean() < 1
    one, two = new_inputs(sizes=SMALL, seed=1), new_inputs(sizes=SMALL, seed=2)
    maps, pooled = doubled(one[0], two[0], one[1], two[1])
    loss = head.training_loss(head(maps, pooled), LABELS, 0.0)

    _, places, y = equations(head, maps)
    covered = inside.reshape(2, 8, 3, 8).mean((1, 3))  # of a map of 2x3 places over 16x24 pixels
    share = inside.mean()

    def classified(p):
        own, foreign = negative_log(p[3:], LABELS), negative_log(p[3:], LABELS[[2, 0, 1]])
        return (negative_log(p[:3], LABELS) + (1 - share) * own + share * foreign) / 2

    gap = (pooled @ head.gap.weight.T + head.gap.bias).softmax(1)
    distilled = kl(y.detach(), gap).mean() + 0.5 * classified(gap)
    s = (torch.einsum("c,bchw->bhw", head.box.weight[0, :, 0, 0], maps[-1][3:]) + head.box.bias).sigmoid()
    finding = -(covered * s.log() + (1 - covered) * (1 - s).log()).mean()
    apart = kl(places[[2, 0, 1]].detach(), places[3:])
    keeping = (covered * apart).sum() / (3 * covered.sum())
    agree(loss, classified(y) + 0.7 * distilled + 0.3 * (finding + keeping), head)


def test_a_box_of_the_image_before_is_pasted(trainable):
    head, images = trainable(self_supervision=1.0), torch.arange(4.0)[:, None, None, None].expand(4, 3, 20, 30)
    shares, edges = [], set()
    for seed in range(200):
        torch.manual_seed(seed)
        both = head.training_images(images)
        assert torch.equal(both[:4], images)
        mixed, inside = both[4:], head.pasted.bool()
        assert (mixed[:, :, inside] == torch.tensor([3.0, 0.0, 1.0, 2.0])[:, None, None]).all()
        assert (mixed[:, :, ~inside] == torch.arange(4.0)[:, None, None]).all()
        rows, columns = inside.any(1), inside.any(0)
        assert inside.sum() == rows.sum() * columns.sum()  # a rectangle
        shares.append(inside.float().mean().item())
        edges |= {(rows.int().argmax().item(), columns.int().argmax().item())}
        torch.manual_seed(seed)
        assert torch.equal(head.training_images(images), both)
    assert len(edges) > 30
    # A uniform share, of which the image's border cuts off some: the mean is below 1/2.
    assert 0.2 < sum(shares) / len(shares) < 0.4
    assert min(shares) < 0.02
    assert max(shares) > 0.6


def test_images_keep_their_memory_format(trainable):
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    both = trainable(self_supervision=1.0).training_images(images)
    assert both.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("drawn", "share"), [(0.0, 0.0), (1.0, 0.25)])
def test_an_empty_and_a_large_box(monkeypatch, new_inputs, trainable, drawn, share):
    head = trainable(self_supervision=1.0)
    monkeypatch.setattr(torch, "rand", lambda count: torch.tensor([drawn, 0.0, 0.0]))
    images = torch.randn(3, 3, 16, 24)
    both = head.training_images(images)
    assert (both[3:] != images).any(1).float().mean() == share
    one = new_inputs(sizes=SMALL)
    loss = head.training_loss(head(*doubled(one[0], one[0], one[1], one[1])), LABELS, 0.0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_what_a_step_remembers_is_forgotten_and_never_saved(new_inputs, trainable):
    head = trainable(self_supervision=1.0, distillation=1.0)
    keys = head.state_dict().keys()
    assert {"gap.weight", "box.weight"} <= keys
    one = new_inputs(sizes=SMALL)
    head.training_images(torch.randn(3, 3, 16, 24))
    scores = head(*doubled(one[0], one[0], one[1], one[1]))
    assert head.kept is not None
    assert head.state_dict().keys() == keys
    copied = copy.deepcopy(head)
    assert copied.kept is copied.pasted is None
    assert head.kept is not None
    head.training_loss(scores, LABELS, 0.0)
    assert head.kept is head.pasted is None
    head.eval()(*one)
    assert head.kept is None
    with pytest.raises(FoveateError, match="follows training_images and one forward pass in training"):
        head.training_loss(scores, LABELS, 0.0)


def test_the_layers_of_the_losses_are_there_only_with_their_weight(trainable):
    assert not {"gap", "box"} & {name for name, _ in trainable().named_children()}
    assert trainable(distillation=0.1).box is None
    assert trainable(self_supervision=0.1).gap is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "gapp"}, "did you mean 'gap'"),
        ({"distillation": -1.0}, "distillation=-1.0.: a loss's weight is 0 or more"),
        ({"self_supervision": math.nan}, "a loss's weight is 0 or more"),
        ({"width": 0}, "width=0"),
    ],
)
def test_errors(sizes, options, message):
    with pytest.raises(FoveateError, match=message):
        SpatiallyAttentiveOutput(*sizes, **options)


def test_training_loss_takes_the_scores_of_its_own_pass(new_inputs):
    """Scores of another forward pass would be trained with what this one remembers."""
    head = SpatiallyAttentiveOutput((8, 12, 16), 16, 5, distillation=1.0, width=4).train()
    labels = torch.tensor([0, 1, 2])
    (one, pooled), (other, _) = (new_inputs(dtype=torch.float32, seed=seed) for seed in (1, 2))
    first = head(one, pooled)
    head(other, pooled)
    with pytest.raises(FoveateError, match="other scores than its last forward pass"):
        head.training_loss(first, labels, 0.0)
    scores = head(one, pooled)
    assert head.training_loss(scores.double(), labels, 0.0).isfinite()
    nan = head([m * float("nan") for m in one], pooled)
    assert head.training_loss(nan, labels, 0.0).isnan()
