from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foveate.data import ImageData, Split
from foveate.training.recipes.recipe import Recipe

CLASSES = ("red", "green", "blue")


def picture(seed: int, label: int, size: int = 20) -> bytes:
    """Noise with one colour brighter than the others."""
    pixels = np.random.default_rng(seed).integers(0, 140, (size, size, 3), dtype=np.uint8)
    pixels[..., label] += 60
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_split(name: str, count: int, seed: int) -> Split:
    labels = tuple(i % len(CLASSES) for i in range(count))
    sources = tuple(picture(seed + i, label) for i, label in enumerate(labels))
    return Split(name, sources, labels, tuple(f"{name}/{i}.png" for i in range(count)))


def make_data(train: int = 26, val: int = 9) -> ImageData:
    return ImageData("tiny", CLASSES, make_split("train", train, 0), make_split("val", val, 1000))


def make_net(classes: int = 3, seed: int = 0) -> nn.Sequential:
    """Everything whose state or random numbers could be lost: BatchNorm, dropout, several memory formats."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU()),
            nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(16, classes),
        )


def make_plain_net() -> nn.Sequential:
    """Without BatchNorm and dropout, and with a part that no step uses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip
        net[0].unused = nn.Linear(2, 2)
    return net


def make_norm_net() -> nn.Sequential:
    net = make_plain_net()
    net[1] = nn.BatchNorm2d(8)
    net[4] = nn.Sequential(nn.ReLU(), nn.Dropout(0.2))
    return net


RECIPE = Recipe(epochs=3, batch_size=8, image_size=16, learning_rate=5e-3, seed=1)


@pytest.fixture(scope="session")
def new_data() -> Callable[..., ImageData]:
    return make_data


@pytest.fixture(scope="session")
def data() -> ImageData:
    return make_data()


@pytest.fixture
def new_net() -> Callable[..., nn.Sequential]:
    return make_net


@pytest.fixture
def recipe() -> Recipe:
    return RECIPE


@pytest.fixture
def new_plain_net() -> Callable[..., nn.Sequential]:
    return make_plain_net
