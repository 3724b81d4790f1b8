"""Small data sets for segmentation in every layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _write(image: Path, label_map: Path, seed: int, numbers: tuple[int, ...], size: tuple[int, int] = (12, 16)) -> None:
    for path in (image, label_map):
        path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(image)
    Image.fromarray(random.choice(np.array(numbers, np.uint8), size)).save(label_map)


@pytest.fixture(scope="session")
def write_pair():
    return _write


@pytest.fixture
def plain(tmp_path):
    """images/PART and annotations/PART, three classes and one that does not count."""
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for n in range(count):
            _write(tmp_path / f"images/{part}/{n}.jpg", tmp_path / f"annotations/{part}/{n}.png", n, (0, 1, 2, 3))
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\nunlabelled\n")
    return tmp_path
