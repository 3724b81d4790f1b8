from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.surgery.insert import insert
from foveate.training.freeze import find_frozen, freeze_parameters, is_chain, tail, trunk_features

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(source: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        library, name = source.split(":")
        if library == "torchvision":
            return torchvision.models.get_model(name, weights=None, num_classes=5).eval()
        return timm.create_model(name, num_classes=5).eval()


@pytest.mark.parametrize(
    ("source", "freeze", "cut"),
    [
        ("timm:mobilenetv2_035", "blocks.3", "blocks.3"),
        ("timm:mobilenetv2_035", "blocks.3.1", "blocks.3.1"),
        ("timm:mobilenetv2_035", "bn1", "bn1"),
        ("timm:mobilenetv2_035", "trunk", "global_pool"),
        ("timm:resnet10t", "layer2", "layer2"),
        ("torchvision:mobilenet_v2", "features.7", "features.7"),
        ("torchvision:mobilenet_v2", "trunk", "features"),
        ("torchvision:resnet18", "layer1.0.relu", None),
    ],
)
def test_trunk_and_tail_are_the_whole(source, freeze, cut):
    model = build(source)
    if cut is None:
        with pytest.raises(FoveateError, match="runs 2 times"):
            find_frozen(model, freeze, IMAGES)
        return
    names = [name for name, _ in model.named_modules()]
    frozen = find_frozen(model, freeze, IMAGES)
    assert frozen.cut == cut
    assert is_chain(model, frozen, IMAGES)
    with torch.no_grad():
        features = trunk_features(model, frozen, IMAGES)
        with tail(model, frozen):
            given = model(features)
        torch.testing.assert_close(given, model(IMAGES), rtol=1e-6, atol=1e-6)
    assert [name for name, _ in model.named_modules()] == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_frozen_is_what_ran_before():
    model = build("timm:mobilenetv2_035")
    frozen = find_frozen(model, "blocks.2.1", IMAGES)
    assert frozen.modules == ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2.0", "blocks.2.1")
    outputs: dict[str, Tensor] = {}
    for name in ("blocks.2.1", "blocks.2.2"):
        model.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: outputs.update({name: out}))
    model(IMAGES)
    reached = torch.autograd.grad(outputs["blocks.2.1"].sum(), list(model.parameters()), allow_unused=True)
    by_gradient = {name for (name, _), g in zip(model.named_parameters(), reached, strict=True) if g is not None}
    assert frozen.parameters == by_gradient


def test_the_trunk_is_all_but_the_classifier():
    frozen = find_frozen(build("timm:mobilenetv2_035"), "trunk", IMAGES)
    names = {name for name, _ in build("timm:mobilenetv2_035").named_parameters()}
    assert names - frozen.parameters == {"classifier.weight", "classifier.bias"}


class Skips(nn.Module):
    """A module gets more than the one before it gives."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.second(self.first(x) + x).mean((2, 3)))


def test_a_network_that_is_no_chain_is_noticed():
    model = Skips()
    frozen = find_frozen(model, "first", IMAGES)
    assert not is_chain(model, frozen, IMAGES)
    assert isinstance(model.first, nn.Conv2d)


def test_modules_come_back_when_the_tail_fails():
    model = build("timm:resnet10t")
    frozen = find_frozen(model, "layer2", IMAGES)
    before = dict(model.named_modules())
    with pytest.raises(RuntimeError), tail(model, frozen):
        model(torch.zeros(1, 7, 3, 3))
    after = dict(model.named_modules())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_freeze_parameters_puts_back_what_was():
    model = build("timm:resnet10t")
    model.layer1.requires_grad_(False)
    model.layer3.requires_grad_(False)
    found = [parameter.requires_grad for parameter in model.parameters()]
    with freeze_parameters(model, find_frozen(model, "layer2", IMAGES)):
        assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"layer4", "fc"}
    assert [parameter.requires_grad for parameter in model.parameters()] == found


@pytest.mark.parametrize(
    ("freeze", "words"),
    [
        ("layr2", "no such module; did you mean 'layer2'"),
        ("trnk", "did you mean 'trunk'"),
        ("fc", "leaves nothing to train"),
    ],
)
def test_errors(freeze, words):
    with pytest.raises(FoveateError) as error:
        find_frozen(build("timm:resnet10t"), freeze, IMAGES)
    assert words in str(error.value)


@pytest.mark.parametrize("start", ["mechanism", "identity"])
@pytest.mark.parametrize(
    ("source", "plan", "frozen_by", "free_of"),
    [
        ("timm:resnet10t", "se after layer2.0", ("layer2", "layer2.0", "layer3", "trunk"), ("layer1", "maxpool")),
        ("timm:mobilenetv2_035", "se after blocks.2", ("blocks.2",), ("blocks.1",)),
        ("timm:mobilenetv2_035", "ulsam(groups=1) replacing blocks.2.1", ("blocks.2.1",), ("blocks.2.0",)),
        # The part of a plain Sequential cannot keep the mechanism: it hangs above, and only its run tells where it is.
        ("torchvision:vgg11", "se after features.2", ("features.2", "features.5"), ("features.1",)),
    ],
)
def test_frozen_attention_is_refused(source, plan, frozen_by, free_of, start):
    model = build(source)
    insert(model, plan, start=start, input_size=32, seed=0)
    for freeze in frozen_by:
        with pytest.raises(FoveateError, match="would never train"):
            find_frozen(model, freeze, IMAGES)
    for freeze in free_of:
        frozen = find_frozen(model, freeze, IMAGES)
        assert is_chain(model, frozen, IMAGES)
        assert not any("foveate" in name for name in frozen.parameters)
