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
