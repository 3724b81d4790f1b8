"""A small data set that a small network learns in a second."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from foveate.data import open_data

# A busy machine is not a fault of the code: nothing here is timed.
settings.register_profile("foveate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("foveate")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two classes, a bright square left or right, as PNG files in class folders."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 8)):
        for label, name in enumerate(("left", "right")):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
                pixels[8:24, 2 + 16 * label : 14 + 16 * label] += 120
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")
    return root


@pytest.fixture
def data(folder):
    return open_data(folder)
