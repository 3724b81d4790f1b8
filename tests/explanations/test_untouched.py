"""The caller's model comes back as it was, on success and on error."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.explanations.explain import METHODS, explain
from foveate.surgery.insert import attentions


class Noisy(nn.Module):
    """Uses the random state in evaluation mode too."""

    def forward(self, x):
        return x + torch.rand_like(x) * 0


class BrokenError(Exception):
    pass


class Broken(nn.Module):
    def forward(self, x):
        torch.rand(1)
        raise BrokenError


@pytest.fixture
def prepared(prepared_once):
    torch.manual_seed(0)
    model = copy.deepcopy(prepared_once)
    model.stem.append(Noisy())
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.head.register_forward_hook(lambda module, args, out: out)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("frozen", [False, True])
def test_on_success(prepared, images, untouched, method, frozen):
    if frozen:
        prepared.requires_grad_(False)
    check, given = untouched(prepared), images.clone()
    explain(prepared, images, method)
    check()
    assert torch.equal(images, given)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["stem", "head"])
def test_when_the_model_raises(prepared, images, untouched, method, where):
    setattr(prepared, where, nn.Sequential(prepared.get_submodule(where), Broken()))
    check = untouched(prepared)
    with pytest.raises(BrokenError):
        explain(prepared, images, method)
    check()


def test_when_the_mechanism_raises(prepared, images, untouched):
    check = untouched(prepared)
    mechanism = attentions(prepared)["body"]

    def attend(x):
        raise BrokenError

    mechanism.attend = attend
    with pytest.raises(BrokenError):
        explain(prepared, images)
    del mechanism.attend
    check()


@pytest.mark.parametrize("method", METHODS)
def test_an_operation_in_place_on_the_images_stays_inside(prepared, images, method):
    layers = {"first": nn.ReLU(inplace=True), **dict(prepared.stem.named_children())}
    prepared.stem = nn.Sequential(OrderedDict(layers))
    given = images.clone()
    explain(prepared, images, method)
    assert torch.equal(images, given)


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_mode_is_used(prepared, images, method):
    prepared.eval()
    quiet = explain(prepared, images, method)
    prepared.train()
    assert torch.equal(explain(prepared, images, method).maps[0].values, quiet.maps[0].values)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_mode_of_autograd_around(prepared, images, untouched, method, around):
    expected = explain(prepared, images, method).maps[0].values
    check = untouched(prepared)
    with around():
        found = explain(prepared, images * 1, method).maps[0].values
    check()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam"])
def test_when_the_layer_does_not_fit(prepared, images, untouched, method):
    check = untouched(prepared)
    for layer in ("head", "pool", "unused", "nowhere"):
        with pytest.raises(FoveateError):
            explain(prepared, images, method, layer=layer)
    with pytest.raises(FoveateError):
        explain(prepared, images, method, target=99)
    check()
