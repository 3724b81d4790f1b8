"""What a network says of itself is read in one way, whichever form timm's description has."""

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

import foveate as fv
from foveate.model_info import attributes_of, device_and_dtype, pretrained_config, update_pretrained_config, value_text

FIELDS = {"input_size": (3, 48, 64), "label_names": ("cat", "dog"), "architecture": "resnet18", "tag": None}
FORMS = {"dict": dict, "dataclass": lambda **fields: PretrainedCfg(**fields), "object": SimpleNamespace}


@pytest.fixture(params=FORMS)
def described(request):
    model = timm.create_model("test_resnet", num_classes=2).eval()
    model.pretrained_cfg = model.default_cfg = FORMS[request.param](**FIELDS)
    return model


def test_every_form_is_read_alike(described):
    config = pretrained_config(described)
    assert {key: config.get(key) for key in FIELDS} == FIELDS
    assert "tag" not in config
    config["input_size"] = None
    assert pretrained_config(described)["input_size"] == (3, 48, 64)
    assert pretrained_config(nn.Conv2d(3, 1, 1)) == {}


def test_writing_keeps_the_form_and_what_others_share(described):
    before = described.pretrained_cfg
    update_pretrained_config(described, {"label_names": ("one", "two")})
    assert pretrained_config(described)["label_names"] == ("one", "two")
    assert pretrained_config(described)["input_size"] == (3, 48, 64)
    assert described.default_cfg is described.pretrained_cfg
    assert type(described.pretrained_cfg) is type(before)
    assert (before if isinstance(before, dict) else vars(before))["label_names"] == ("cat", "dog")
    plain = nn.Conv2d(3, 1, 1)
    update_pretrained_config(plain, {"crop_pct": 1.0})
    assert plain.pretrained_cfg == {"crop_pct": 1.0}


def test_every_room_reads_every_form(described, tmp_path):
    """Saving, explaining, sites and the preparation of images take what the description says, in each form."""
    explained = fv.explain(described, torch.rand(1, 3, 48, 64), method="gradcam")
    assert explained.labels == ("cat", "dog")
    assert fv.sites(described)[0].width == 64 // fv.sites(described)[0].stride
    loaded = fv.load(fv.save(described, tmp_path / "saved"), timm.create_model("test_resnet", num_classes=2))
    assert pretrained_config(loaded)["label_names"] == ("cat", "dog")


def test_device_and_dtype():
    half = nn.Sequential(nn.Embedding(2, 2), nn.BatchNorm1d(2, affine=False)).half()
    assert device_and_dtype(half) == (torch.device("cpu"), torch.float16)
    assert device_and_dtype(nn.ReLU(), half) == (torch.device("cpu"), torch.float16)
    assert device_and_dtype(half.to("meta"))[0].type == "meta"
    assert device_and_dtype(nn.BatchNorm1d(2, affine=False).double())[1] == torch.float64
    assert device_and_dtype(nn.ReLU()) == (torch.device("cpu"), torch.get_default_dtype())
    whole = nn.Module()
    whole.register_buffer("count", torch.zeros(1, dtype=torch.long))
    assert device_and_dtype(whole) == (torch.device("cpu"), torch.get_default_dtype())


@dataclasses.dataclass
class Settings:
    sizes: tuple[int, ...]


def scaled(factor):
    return lambda x: x * factor


@pytest.mark.parametrize(
    "make",
    [
        lambda k: k,
        lambda k: 1.0 + k * 1e-12,
        lambda k: torch.tensor([1.0 + k * 1e-6]),
        lambda k: torch.zeros(40, 40).index_fill(1, torch.tensor([20]), k),
        lambda k: np.array([1.0, k]),
        np.float32,
        lambda k: [1, {"a": {k}}],
        lambda k: (lambda x: x + 1) if k else (lambda x: x + 2),
        scaled,
        lambda k: functools.partial(scaled, k),
        lambda k: Settings((1, k)),
    ],
)
def test_equal_values_and_no_others_have_one_text(make):
    assert value_text(make(0)) == value_text(make(0)) != value_text(make(1))


def test_a_list_that_holds_itself_ends():
    held = [1]
    held.append(held)
    assert value_text(held) == "[1, itself]"


def test_what_a_module_holds():
    module = nn.Conv2d(3, 4, 1)
    name, held = attributes_of(module)
    assert name.endswith("Conv2d")
    assert dict(held)["stride"] == "[1, 1]"
    assert attributes_of(module.eval()) == (name, held)  # its mode is the caller's
