from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import foveate as fv
from foveate.model_info import update_pretrained_config

CLASSES = ("red", "green", "blue")


def picture(seed: int, label: int, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """Noise with one colour brighter than the others."""
    pixels = np.random.default_rng(seed).integers(0, 140, (*size, 3), dtype=np.uint8)
    pixels[..., label] += 60
    return Image.fromarray(pixels)


def make_net(classes: int = 3, names: tuple[str, ...] | None = CLASSES, channels: int = 3) -> nn.Sequential:
    """BatchNorm and dropout: in training mode it would predict something else."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, classes),
        )  # fmt: skip
    with torch.no_grad():
        net[-1].weight *= 20
    config = {"input_size": (channels, 16, 16), "crop_pct": 1.0}
    update_pretrained_config(net, {**config, **({"label_names": names} if names else {})})
    return net


@pytest.fixture
def net() -> nn.Sequential:
    return make_net()


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """``train/CLASS`` and ``val/CLASS``, three and four images of each class, of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 3), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                picture(100 * label + k, label, (20 + k, 30 - k)).save(root / part / name / f"{k}.png")
    return root


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A model that foveate saved, with its class names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("mobilenetv2_035", num_classes=3)
    update_pretrained_config(model, {"input_size": (3, 32, 32), "label_names": CLASSES})
    return fv.save(model, tmp_path_factory.mktemp("saved") / "model_best")


@pytest.fixture(scope="session")
def new_net():
    return make_net


@pytest.fixture(scope="session")
def new_picture():
    return picture
