from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
import torchvision
from timm.models import PretrainedCfg
from torch import nn

from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.surgery.classifier import classifier_of
from foveate.surgery.insert import insert
from foveate.surgery.record import record_of
from foveate.training.classifier import draw_small, replace_classifier, write_config

SOURCES = {
    "timm:mobilenetv2_035": ("classifier",),
    "timm:resnet10t": ("fc",),
    "timm:convnext_atto": ("head.fc",),
    "torchvision:mobilenet_v2": ("classifier.1",),
    "torchvision:squeezenet1_1": ("classifier.1",),
    "torchvision:shufflenet_v2_x0_5": ("fc",),
}


@pytest.mark.parametrize("source", SOURCES)
def test_replace(source):
    library, name = source.split(":")
    model = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, weights=None)
    kept = {key for key in model.state_dict() if not key.startswith(SOURCES[source])}
    assert classifier_of(model) == SOURCES[source]
    replace_classifier(model, 7)
    assert classifier_of(model) == SOURCES[source]
    assert kept <= model.state_dict().keys()
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    draw_small(model, 0.01)
    layer = model.get_submodule(SOURCES[source][0])
    assert 0.005 < layer.weight.std() < 0.02
    assert not layer.bias.any()


def test_no_classifier():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 4)

    with pytest.raises(FoveateError, match="no classifier is found in Odd"):
        classifier_of(Odd())
    odd = Odd()
    odd.fc = nn.Conv2d(3, 4, 3)
    with pytest.raises(FoveateError, match="'fc' is not a Linear or 1x1 convolution"):
        replace_classifier(odd, 2)


class TwoLayers(nn.Module):
    """Pooled features, a hidden layer with a classifier's name, and the class scores."""

    def __init__(self, hidden="fc", last="out", *, first=False, size=None, end=None):
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, 2, 1)
        layers = {hidden: nn.Linear(6 if size is None else 6 * size * size, 5), last: nn.Linear(5, 4)}
        for name in reversed(layers) if first else layers:
            self.add_module(name, layers[name])
        self.hidden, self.last, self.end, self.size = hidden, last, end or nn.Identity(), size

    def forward(self, x):
        x = self.body(x).flatten(1) if self.size else self.body(x).mean((2, 3))
        return self.end(getattr(self, self.last)(getattr(self, self.hidden)(x).relu()))


class Aside(nn.Module):
    """A classifier, and layers registered behind it that the class scores do not come from."""

    def __init__(self):
        super().__init__()
        self.fc, self.unused, self.aside = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        scores = self.fc(x.mean((2, 3)))
        self.kept = self.aside(scores)
        return scores


@pytest.mark.parametrize("end", [None, nn.LogSoftmax(1)], ids=["plain", "log_softmax"])
@pytest.mark.parametrize("first", [False, True], ids=["in order", "the last is registered first"])
@pytest.mark.parametrize("hidden", ["fc", "classifier", "head"])
def test_a_hidden_layer_with_a_classifiers_name(hidden, first, end):
    model = TwoLayers(hidden, first=first, end=end).train()
    assert classifier_of(model) == ("out",)
    assert model.training
    assert model.out.training
    replace_classifier(model, 7)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    before = model.get_submodule(hidden).weight.clone()
    draw_small(model, 0.01)
    assert model.out.weight.std() < 0.02
    assert torch.equal(model.get_submodule(hidden).weight, before)


class Behind(timm.models.ResNet):
    """timm's network with another layer behind its classifier."""

    def __init__(self):
        super().__init__(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=6, channels=(8, 8, 8, 8))
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        return self.out(super().forward(x).relu())


def test_a_layer_behind_timms_classifier():
    model = Behind().eval()
    assert classifier_of(model, (3, 32, 32)) == ("out",)
    replace_classifier(model, 7, (3, 32, 32))
    assert model.fc.out_features == model.out.in_features == 6
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_a_layer_beside_the_scores_is_no_classifier():
    assert classifier_of(Aside()) == ("fc",)


def test_of_two_layers_none_is_guessed():
    model = TwoLayers(size=4)  # takes images of 8 x 8 alone
    with pytest.raises(FoveateError, match=r"layers 'fc' and 'out'.*cannot be seen.*give the class a method get_class"):
        classifier_of(model)
    assert classifier_of(model, (3, 8, 8)) == ("out",)
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    assert classifier_of(model) == ("out",)


def test_the_owners_word_is_taken():
    class Says(TwoLayers):
        def get_classifier(self):
            return self.out

    assert classifier_of(Says(size=4)) == ("out",)


def test_a_head_takes_the_place_of_the_last_layer():
    model = insert(TwoLayers(), "ltpa as head on body", input_size=16)
    assert [at.path for at in record_of(model).placed] == ["out.foveate"]
    assert classifier_of(model) == ("out",)
    torch_vision = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None)
    insert(torch_vision, "ltpa as head", input_size=64)
    assert classifier_of(torch_vision) == ("fc",)


@pytest.mark.parametrize("kind", ["dataclass", "dict", "none"])
def test_config_keeps_its_kind(kind):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    held = {"dataclass": PretrainedCfg(architecture="x"), "dict": {"architecture": "x"}, "none": None}[kind]
    if held is not None:
        model.pretrained_cfg = model.default_cfg = held
    preprocess = Preprocess((32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.9)
    write_config(model, preprocess, ("cat", "dog"))
    config = model.pretrained_cfg
    assert dataclasses.is_dataclass(config) == (kind == "dataclass")
    fields = dataclasses.asdict(config) if kind == "dataclass" else config
    assert fields["label_names"] == ("cat", "dog")
    assert fields["num_classes"] == 2
    assert fields.get("architecture") == (None if kind == "none" else "x")
    assert Preprocess.of(model) == preprocess
    if held is not None:
        assert model.default_cfg is config
        assert held == (PretrainedCfg(architecture="x") if kind == "dataclass" else {"architecture": "x"})
