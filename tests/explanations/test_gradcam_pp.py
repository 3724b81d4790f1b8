import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.explanations.explain import explain
from foveate.explanations.gradcam_pp import gradcam_pp, position_weights
from foveate.explanations.gradients import layer_gradients
from foveate.explanations.layers import find_layer


class Tail(nn.Module):
    """Feature maps, a ReLU with a linear layer of its own for each position, and a second one: piecewise linear."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU())
        self.hidden = nn.Linear(3 * 2 * 3, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(F.relu(self.hidden(self.body(x).flatten(1))))


@pytest.fixture
def tail():
    torch.manual_seed(3)
    return Tail().double()


def derivatives(logit_of, maps):
    """The first three derivatives of exp(logit) with respect to each number of the maps, by autograd alone."""
    flat = maps.detach().flatten().requires_grad_()
    value = logit_of(flat.view_as(maps)).exp()
    (first,) = torch.autograd.grad(value, flat, create_graph=True)
    second, third = torch.zeros_like(first), torch.zeros_like(first)
    for place in range(flat.numel()):
        (row,) = torch.autograd.grad(first[place], flat, create_graph=True)
        second[place] = row[place].detach()
        third[place] = torch.autograd.grad(row[place], flat, retain_graph=True)[0][place]
    return (part.detach().view_as(maps) for part in (first, second, third))


@pytest.mark.parametrize("target", [0, 1, 2, 3])
def test_the_paper_with_true_derivatives(tail, target):
    image = torch.randn(1, 2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(target))
    maps = tail.body(image).detach()
    first, second, third = derivatives(lambda a: tail.head(F.relu(tail.hidden(a.flatten(1))))[0, target], maps)
    denominator = 2 * second + maps.sum((2, 3), keepdim=True) * third
    alpha = torch.where(denominator == 0, 0, second / denominator)
    weights = (alpha * F.relu(first)).sum((2, 3), keepdim=True)
    expected = F.relu((weights * maps).sum(1))
    assert expected.max() > 0

    found = layer_gradients(tail, image, find_layer(tail, image, "body"), [target])
    mine = position_weights(found.maps, found.gradient)
    torch.testing.assert_close(mine[first != 0], alpha[first != 0])
    _, result = gradcam_pp(tail, image, find_layer(tail, image, "body"), [target])
    scale = found.logits[0, target].exp()  # the factor that is left out
    torch.testing.assert_close(scale * result.values.double(), expected, rtol=1e-6, atol=0)


def test_float32_gives_what_float64_gives(model, images):
    # Gradients of 1e-9: their squares are beyond float32's 1e-7 beside anything, and below 1e-12 as an epsilon.
    with torch.no_grad():
        model.head.weight.mul_(1e-9)
    single = explain(model, images, "gradcam++", layer="stem", target=2).maps[0].values
    double = explain(model.double(), images, "gradcam++", layer="stem", target=2).maps[0].values
    assert double.max() > 0
    torch.testing.assert_close(single / double.max(), double / double.max(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_denominator_of_zero_is_no_nan(dtype):
    maps = torch.tensor([[[[-1.0, 0.0], [0.0, -1.0]], [[0.0, 0.0], [0.0, 0.0]]]], dtype=dtype)
    gradient = torch.tensor([[[[1.0, 0.0], [2.0, -1.0]], [[0.0, 1.0], [0.0, 0.0]]]], dtype=dtype)
    alpha = position_weights(maps, gradient)
    assert alpha.isfinite().all()
    assert alpha[0, 0].tolist() == [[0.0, 0.5], [-0.5, 0.25]]  # 2 - 2 * 1 = 0
    assert (alpha[0, 1] == 0.5).all()


def test_huge_logits_do_not_overflow(model, images):
    small = explain(model, images, "gradcam++", target=1).maps[0].values
    with torch.no_grad():
        model.head.bias.add_(1000)
    assert torch.equal(explain(model, images, "gradcam++", target=1).maps[0].values, small)


def test_no_gradient_gives_a_map_of_zeros(model, images):
    with torch.no_grad():
        model.head.weight.zero_()
    assert torch.equal(explain(model, images, "gradcam++", target=1).maps[0].values, torch.zeros(3, 8, 10))
