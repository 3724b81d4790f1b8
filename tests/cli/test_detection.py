"""From a folder of images with boxes to a file of boxes on the command line."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.cli.app import app
from foveate.errors import FoveateError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    (folder / "images").mkdir()
    images = [{"id": n, "file_name": f"{n}.png", "width": 48, "height": 40} for n in range(5)]
    boxes = [{"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [4, 6, 20 + n, 16]} for n in range(5)]
    boxes.append({"id": 9, "image_id": 0, "category_id": 1, "bbox": [4, 6, 0, 16]})
    for entry in images:
        random = np.random.default_rng(entry["id"])
        Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(
            folder / "images" / entry["file_name"]
        )
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": names}))
    return folder


def run(*words):
    try:
        app(list(map(str, words)))
    except SystemExit as stopped:
        return stopped.code or 0
    except FoveateError as error:  # which the program prints
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def test_a_faulty_box_is_named_before_anything_is_trained(folder, tmp_path, capsys):
    assert run("data", "check", folder) == 1
    out = capsys.readouterr().out
    assert "bad: 1" in out
    assert "the box 4, 6, 4, 22 (left, top, right, bottom) of 'cat' has no area" in out
    assert run("data", "check", folder, "--json") == 1
    assert json.loads(capsys.readouterr().out)["objects"][1]["class"] == "dog"
    assert run("train", folder, "--output", tmp_path / "run") == 2
    assert "has no area; on_bad_image='skip'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run("train", folder, "--allow-empty", "--output", tmp_path / "run") == 2
    assert "this data has boxes" in capsys.readouterr().err


def test_train_evaluate_predict(folder, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    kept = tmp_path / "run"
    options = ("--epochs", 1, "--image-size", 32, "--batch-size", 2, "--head", "ssdlite(width=0.1)", "--output", kept)
    skip = ("--on-bad-image", "skip")
    plan = ("--model", "test_efficientnet", "--plan", "se after backbone.blocks.1.0")
    assert run("train", folder, *plan, *options, *skip) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("mAP ")
    assert "training for detection, the objects in images: the data have boxes" in captured.err
    assert "left out: images/0.png" in captured.err or "left out: 0.png" in captured.err
    assert run("evaluate", kept, folder, "--part", "train", "--json", *skip) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["class"] for row in found["classes"]] == ["cat", "dog"]
    assert found["images"] == 4
    assert run("evaluate", kept, folder, *skip) == 0
    assert "ap50" in capsys.readouterr().out
    assert run("evaluate", kept, folder, "--confusion", tmp_path / "a.png", *skip) == 2
    assert "this data has boxes: take --csv" in capsys.readouterr().err
    boxes = tmp_path / "boxes.json"
    assert run("predict", kept, folder / "images", "--output", boxes, "--pictures", tmp_path / "drawn") == 0
    assert "objects of 5 images written" in capsys.readouterr().err
    assert len(json.loads(boxes.read_text())["images"]) == len(list((tmp_path / "drawn").iterdir())) == 5
    seen = tmp_path / "seen.png"
    words = ("--method", "hirescam", "--box", 1, "--output", seen, "--json")
    assert run("explain", kept, folder / "images" / "0.png", *words) == 0
    (row,) = json.loads(capsys.readouterr().out)["predictions"]
    assert row["prediction"] in ("cat", "dog")
    assert 0 < row["score"] < 1
    with Image.open(seen) as drawn:
        assert drawn.height > 300
    assert run("explain", kept, folder / "images" / "0.png", "--method", "gradcam", "--box", 999) == 2
    assert "objects were found, counted from 1 by their score" in capsys.readouterr().err
    assert run("predict", kept, folder / "images/3.png", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"path", "objects"}
    for words, message in (
        (("--output", "-"), "name it"),
        (("--copy-to", tmp_path / "copies"), "--copy-to is for classes"),
        (("--pictures", tmp_path / "drawn"), "needs --output"),
        (("--output", tmp_path / "a.csv"), "name a .json file"),
    ):
        assert run("predict", kept, folder / "images", *words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow(
    reason="it exports a detector, as tests/exporters/test_detection.py does",
    guards=(
        "foveate/exporters/",
        "foveate/cli/export.py",
        "foveate/dense/detection/",
        "foveate/prediction/",
    ),
)
def test_export(folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("faster_coco_eval")
    torch.manual_seed(0)
    model = fv.create_detector("test_efficientnet", "ssdlite(width=0.1)", classes=("cat", "dog"))
    for parameter in model.decoder.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)  # else the scores are almost equal, and rounding decides which box suppresses which
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    fv.save(model, tmp_path / "kept")
    given = ("--data", folder, "--on-bad-image", "skip", "--output", tmp_path / "files", "--no-time")
    assert run("export", tmp_path / "kept", "--to", "onnx", "pt2", *given, "--json") == 1
    row, refused = json.loads(capsys.readouterr().out)
    assert row["status"] == "ok", row["reason"]
    assert row["map"] == pytest.approx(row["network_map"], abs=1e-3)
    assert "detectors are written as onnx" in refused["reason"]
    boxes = tmp_path / "boxes.json"
    assert run("predict", row["path"], folder / "images", "--output", boxes) == 0
    assert [entry["name"] for entry in json.loads(boxes.read_text())["categories"]] == ["cat", "dog"]
    assert run("evaluate", row["path"], folder, "--on-bad-image", "skip", "--json") == 0
    assert json.loads(capsys.readouterr().out)["map"] == pytest.approx(row["map"], abs=1e-6)


def test_compare(folder, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    options = ("--model", "test_efficientnet", "--head", "ssdlite(width=0.1)", "--epochs", 1, "--image-size", 32)
    plans = ("--seeds", 1, "--plans", "se after backbone.blocks.1.0", "--on-bad-image", "skip", "--output", tmp_path)
    assert run("compare", folder, *options, *plans, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["plan"] for row in rows] == ["none", "se after backbone.blocks.1.0"]
    assert all(0 <= row["map"] <= 100 and "top1" not in row for row in rows)
    assert "mAP" in (tmp_path / "report.html").read_text()
    assert run("results", tmp_path) == 0
    assert "points of mAP" in " ".join(capsys.readouterr().out.split())
    assert run("compare", folder, *options, *plans, "--export", "onnx") == 2
    assert "--export is for images with one class each, and this data has boxes" in capsys.readouterr().err


def test_audit(folder, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    model = fv.create_detector("test_efficientnet", "ssdlite(width=0.1)", classes=("cat", "dog"))
    fv.save(fv.insert(model, "se after backbone.blocks.1.0", input_size=32), tmp_path)
    given = ("--image-size", 32, "--val-fraction", 0.5, "--on-bad-image", "skip")
    assert run("audit", tmp_path, folder, *given, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["map"] <= 100
    assert [row["site"] for row in found["modules"]] == ["backbone.blocks.1.0"]
    assert run("audit", tmp_path, folder, "--image-size", 32) == 2
    assert "has no area; on_bad_image='skip'" in capsys.readouterr().err


def test_masks_on_the_command_line(folder, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    content = json.loads((folder / "boxes.json").read_text())
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        one["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    masked = tmp_path / "masks"
    shutil.copytree(folder, masked)
    (masked / "boxes.json").write_text(json.dumps({**content, "annotations": content["annotations"][:5]}))
    head = "mask_rcnn(width=8, hidden=8, anchor=8, threshold=0.0, detections=3)"
    kept = tmp_path / "run"
    options = ("--epochs", 1, "--image-size", 32, "--batch-size", 2, "--model", "test_efficientnet", "--output", kept)
    assert run("train", folder, "--head", head, *options, "--on-bad-image", "skip") == 2
    assert "learns from masks of the objects, and the train images have only boxes" in capsys.readouterr().err
    assert run("train", masked, "--head", head, *options) == 0
    assert "mask mAP50" in capsys.readouterr().out
    assert run("evaluate", kept, masked) == 0
    assert "mask_ap50" in capsys.readouterr().out
    assert run("predict", kept, masked / "images", "--output", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert found
    assert all(set(one["segmentation"]) == {"size", "counts"} for one in found)
