"""A small data set for segmentation whose pixels show their class, and a small network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foveate.data.segmentation import open_segmentation

COLOURS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)])


def write_images(folder: Path, part: str, count: int, size: tuple[int, int] = (24, 32)) -> None:
    """Blocks of one colour for each class, and some pixels that do not count."""
    for n in range(count):
        random = np.random.default_rng([count, n])
        blocks = random.integers(0, 3, (3, 4)).repeat(size[0] // 3, 0).repeat(size[1] // 4, 1)
        noise = random.integers(-30, 30, (*size, 3))
        target = blocks.astype(np.uint8)
        target[:2] = 255
        for kind in ("images", "annotations"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        pixels = (COLOURS[blocks] + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / part / f"{n}.png")
        Image.fromarray(target).save(folder / "annotations" / part / f"{n}.png")


class Net(nn.Module):
    """BatchNorm, dropout and an auxiliary output, as a segmenter has them."""

    def __init__(self) -> None:
        super().__init__()
        self.loss_weights = {"out": 1.0, "aux": 0.4}
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()
        )
        self.decoder = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(8, 3, 1))
        self.aux = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.body(x)
        return {"out": self.decoder(x)} | ({"aux": self.aux(x)} if self.training else {})


def new_net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentation")
    write_images(folder, "train", 8)
    write_images(folder, "val", 3)
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    return folder


@pytest.fixture(scope="session")
def data(folder):
    return open_segmentation(folder)


@pytest.fixture(name="new_net")
def new_net_fixture():
    return new_net
