"""What ``foveate data check`` takes, for each kind of data."""

import json

import numpy as np
import pytest
from PIL import Image

import foveate as fv
from foveate.cli.app import app

COUNT = 10


def pictures(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        random = np.random.default_rng(name)
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{name}.png")


def of_classes(folder):
    for start, label in enumerate("ab"):
        pictures(folder / label, range(start, 2 * COUNT, 2))


def of_label_maps(folder):
    pictures(folder / "images", range(COUNT))
    (folder / "annotations").mkdir()
    for number in range(COUNT):  # each with another share of class 1, so that the split is seen
        rows = np.zeros((16, 16), np.uint8)
        rows[:, : 1 + number] = 1
        Image.fromarray(rows).save(folder / f"annotations/{number}.png")


def of_boxes(folder):
    pictures(folder / "images", range(COUNT))
    images = [{"id": n, "file_name": f"{n}.png", "width": 16, "height": 16} for n in range(COUNT)]
    boxes = [
        {"id": 16 * n + box, "image_id": n, "category_id": 1, "bbox": [box, 1, 4, 4]}
        for n in range(COUNT)
        for box in range(1 + n)
    ]
    described = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "boxes.json").write_text(json.dumps(described))


KINDS = {"classes": of_classes, "label maps": of_label_maps, "boxes": of_boxes}


@pytest.fixture(params=KINDS)
def checked(request, tmp_path, capsys):
    """(options) -> what the command says, as JSON."""
    KINDS[request.param](tmp_path / "data")

    def check(*options):
        with pytest.raises(SystemExit) as stopped:
            app(["data", "check", str(tmp_path / "data"), "--json", *map(str, options)])
        assert stopped.value.code == 0
        return json.loads(capsys.readouterr().out)

    return check


def test_the_split_is_the_one_that_was_asked_for(checked):
    """As ``train`` splits with these options, whatever the data is."""
    usual = checked()
    assert checked("--val-fraction", 0.2, "--split-seed", 0) == usual
    assert checked("--val-fraction", 0.5) != usual
    assert len({json.dumps(checked("--split-seed", seed)) for seed in range(6)}) > 1


def test_a_fraction_that_is_none(checked):
    with pytest.raises(fv.FoveateError, match=r"val_fraction 1\.5: must lie between 0 and 1"):
        checked("--val-fraction", 1.5)
