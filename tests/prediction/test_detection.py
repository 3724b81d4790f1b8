"""Objects of images: as COCO JSON that reads back, as pictures with boxes and a legend, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.data.detection import open_detection
from foveate.dense import create_detector
from foveate.errors import FoveateError
from foveate.prediction.detection_result import ImageDetections


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = create_detector("test_efficientnet", "ssdlite(width=0.1, detections=4)", classes=("red", "gr\nün"))
    made.pretrained_cfg["input_size"] = (3, 64, 64)
    return made


@pytest.fixture
def photos(tmp_path):
    for n in range(3):
        random = np.random.default_rng(n)
        Image.fromarray(random.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
    (tmp_path / "1.png").write_bytes(b"\x89PNG damaged")
    return tmp_path


def test_boxes_are_written_and_read_back(model, photos):
    mode = model.training
    found = fv.predict(model, photos)
    assert found.write(photos / "boxes.json", pictures=photos / "drawn", threshold=0.0) == 2
    assert model.training == mode
    assert len(found.bad) == 1
    assert "1.png" in found.bad[0][1]
    content = json.loads((photos / "boxes.json").read_text())
    assert [entry["name"] for entry in content["categories"]] == ["red", "gr\nün"]
    assert [entry["height"] for entry in content["images"]] == [60, 60]
    assert len(content["annotations"]) == 8
    assert len({entry["id"] for entry in content["annotations"]}) == 8
    objects = next(iter(fv.predict(model, photos / "0.png")))
    assert len(objects) == 4
    first = [entry for entry in content["annotations"] if entry["image_id"] == 1]
    for entry, row in zip(first, objects.to_dict()["objects"], strict=True):
        assert entry["bbox"] == row["bbox"]
        assert entry["score"] == row["score"]
        x, y, width, height = entry["bbox"]
        assert -0.01 <= x <= x + width <= 90.02
        assert -0.01 <= y <= y + height <= 60.02
    with Image.open(photos / "drawn/000001_0.png") as picture:
        assert picture.width == 90
        assert picture.height > 60
    (photos / "1.png").unlink()
    (photos / "drawn").rename(photos.parent / f"{photos.name}-drawn")
    assert [entry["file_name"] for entry in content["images"]] == ["0.png", "2.png"]
    data = open_detection(photos / "boxes.json", on_bad_image="skip", val_fraction=0.5)
    assert sum(len(one) for one in (*data.train.objects, *data.val.objects)) + len(data.bad) == 8


def test_a_picture_shows_boxes_in_their_colours_and_a_legend():
    image = Image.new("RGB", (100, 80))
    boxes = torch.tensor([[10.0, 10, 50, 60], [60, 20, 90, 40]])
    scores, classes = torch.tensor([0.9, 0.3]), torch.tensor([1, 0])
    item = type("Item", (), {"load": staticmethod(lambda: image)})()
    one = ImageDetections("a.png", boxes, scores, classes, ("cat", "dog"), (80, 100), None, item)
    assert str(one) == "a.png: 1 dog (score 0.5 or more)"
    few, many = np.asarray(one.picture()), np.asarray(one.picture(0.1))
    colours = {tuple(colour) for colour in few[:80].reshape(-1, 3)}
    assert len(colours) == 2  # black and one class
    assert few[10, 30].any()
    assert not few[20, 75].any()
    assert many[20, 75].any()
    assert many.shape[0] > few.shape[0] > 80
    assert tuple(few[10, 30]) in {tuple(colour) for colour in few[80:].reshape(-1, 3)}
    assert np.asarray(one.picture(0.95))[:80].max() == 0


def test_what_is_no_detector_or_no_place_is_refused(model, photos):
    with pytest.raises(FoveateError, match=r"name a \.json file"):
        fv.predict(model, photos).write(photos / "boxes.csv")
    with pytest.raises(FoveateError, match=r"1\.png is not an image"):
        list(fv.predict(model, photos, strict=True))
    broken = create_detector("test_efficientnet", "ssdlite(width=0.1)", classes=2)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("inf"))
    with pytest.raises(FoveateError, match="NaN or infinite"):
        list(fv.predict(broken, photos))
