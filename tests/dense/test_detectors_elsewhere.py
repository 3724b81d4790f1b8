"""What takes classifiers says in one line what a detector, or data with boxes, is; nothing is written or changed."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.errors import FoveateError

DETECTOR = "this is a detector"
BOXES = "images with boxes, and images with one class each are wanted here"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    images = [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 32} for n in range(4)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9]} for n in range(4)]
    for entry in images:
        Image.new("RGB", (32, 32)).save(tmp_path / "data/images" / entry["file_name"])
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    (tmp_path / "data/boxes.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_detectors_and_their_data_are_refused_by_what_takes_classifiers(folder, tmp_path):
    model = fv.create_detector("test_efficientnet", "ssdlite(width=0.1)", classes=("a", "b"))
    fv.insert(model, "se after backbone.blocks.2.0", input_size=32)
    data, recipe = fv.open_detection(folder), fv.Recipe(epochs=1, image_size=32)
    classifier = fv.insert(fv.create_model("test_efficientnet", num_classes=2), "se after blocks.2.0", input_size=32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    calls = [
        ("detectors are written as onnx", lambda: fv.export(model, "pt2", tmp_path / "out")),
        (DETECTOR, lambda: fv.evaluate(model, "elpv")),
        ("this is a detector: audit it on images with boxes", lambda: fv.audit(model, "elpv")),
        (BOXES, lambda: fv.audit(classifier, folder)),
        (BOXES, lambda: fv.audit(classifier, data)),
        (BOXES, lambda: fv.faithfulness(model, data.val, ["gradcam"])),
        (
            "this data has boxes: compare takes them",
            lambda: fv.search("test_efficientnet", "se|identity after blocks.2.0", folder, budget={"macs": "-1%"}),
        ),
        (BOXES, lambda: fv.open_data(folder)),
        (BOXES, lambda: fv.check_data(folder)),
        ("not a detector", lambda: fv.evaluate(fv.create_model("test_efficientnet", num_classes=2), folder)),
        ("no classifier", lambda: fv.fit(model, "elpv", recipe, progress=False)),
    ]
    for words, call in calls:
        with pytest.raises(FoveateError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not (tmp_path / "out").exists()


def test_files_with_other_annotations_beside_class_folders_stay_class_folders(tmp_path):
    """As iNaturalist has them: COCO's form, and a class for each image in the place of boxes."""
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / label / "1.png")
    content = {"images": [{"id": 1}], "annotations": [{"id": 1, "category_id": 1}], "categories": [{"id": 1}]}
    (tmp_path / "train2021.json").write_text(json.dumps(content))
    assert not fv.find_detection(tmp_path)
    assert len(fv.open_data(tmp_path).train) == 2
