"""The packaged solar cells."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from foveate.data import open_data
from foveate.errors import FoveateError

elpv_utils = pytest.importorskip("elpv_dataset.utils")


def number(name: str) -> int:
    return int(name.removeprefix("images/cell").removesuffix(".png"))


def test_cells_classes_and_licence() -> None:
    data = open_data("elpv")
    assert (data.name, data.classes) == ("elpv", ("functional", "defective"))
    assert len(data.train) + len(data.val) == 2624
    # 106 cells of probability 2/3 and 715 of probability 1 (labels.csv).
    assert sum(data.train.labels) + sum(data.val.labels) == 821
    assert data.licence is not None
    assert "CC BY-NC-SA 4.0" in data.licence
    assert "non-commercial" in data.licence
    assert data.train.load(0).size == (300, 300)


def test_labels_and_pictures_are_the_packages_own() -> None:
    data = open_data("elpv", limit=40)
    path = importlib.util.find_spec("elpv_dataset").submodule_search_locations[0]  # type: ignore[union-attr, index]
    table = np.genfromtxt(f"{path}/data/labels.csv", dtype=str)
    defective = {name: float(probability) > 0.5 for name, probability, *_ in table}
    for split in (data.train, data.val):
        assert [bool(label) for label in split.labels] == [defective[name] for name in split.names]
        pixels = np.asarray(split.load(0))
        assert (pixels == pixels[..., :1]).all()


def test_neighbours_stay_together() -> None:
    for seed in range(3):
        data = open_data("elpv", seed=seed)
        sides = {number(name): part for part in ("train", "val") for name in getattr(data, part).names}
        changes = sum(sides[i] != sides[i + 1] for i in range(1, 2624))
        assert changes <= 2 * 9
        assert 0.15 < len(data.val) / 2624 < 0.25
        assert set(data.val.labels) == {0, 1}
    assert "blocks of up to 60 neighbouring cells" in data.note
    assert data.val.names != open_data("elpv", seed=0).val.names
    assert len(open_data("elpv", val_fraction=0.5).val) > 1200


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FoveateError, match=r"pip install 'foveate\[demo\]'"):
        open_data("elpv")
