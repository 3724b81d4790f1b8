"""From a folder of label maps to masks on the command line."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.cli.app import app
from foveate.cli.options import DenseOptions, ModelOptions, NetworkOptions
from foveate.errors import FoveateError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    for n in range(6):
        for kind in ("images", "annotations"):
            (folder / kind).mkdir(exist_ok=True)
        random = np.random.default_rng(n)
        Image.fromarray(random.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(folder / f"images/{n}.png")
        Image.fromarray(random.integers(0, 3, (32, 40), dtype=np.uint8)).save(folder / f"annotations/{n}.png")
    return folder


def run(*words):
    try:
        app(list(map(str, words)))
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


def test_train_evaluate_predict_check(folder, tmp_path, capsys):
    kept = tmp_path / "run"
    options = ("--epochs", 1, "--image-size", 32, "--batch-size", 2, "--head", "lraspp(width=8)", "--output", kept)
    assert run("train", folder, "--model", "test_efficientnet", "--plan", "se after backbone.blocks.1.0", *options) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("mIoU ")
    assert "training for segmentation" in captured.err
    assert "classes are the numbers in the training label maps" in captured.err
    assert run("evaluate", kept, folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["class"] for row in found["classes"]] == ["0", "1", "2"]
    assert found["images"] == 1
    assert run("evaluate", kept, folder, "--boundary") == 0
    out = capsys.readouterr().out
    assert "boundary mIoU" in out
    assert "boundary_iou" in out
    assert run("predict", kept, folder / "images", "--output", tmp_path / "masks") == 0
    assert "6 masks written" in capsys.readouterr().err
    with Image.open(tmp_path / "masks/3.png") as mask:
        assert mask.size == (40, 32)
    assert run("predict", kept, folder / "images/3.png", "--json") == 0
    assert sum(json.loads(capsys.readouterr().out)["shares"].values()) == pytest.approx(1)
    assert run("data", "check", folder) == 0
    assert "bad: none" in capsys.readouterr().out
    assert run("data", "check", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sound"]


@pytest.mark.parametrize("option, given", [("--on-bad-image", ["skip"]), ("--allow-empty", []), ("--parts", ["a:b"])])
def test_options_that_are_for_classification(folder, tmp_path, option, given):
    with pytest.raises(FoveateError, match=f"{option}.* for classification, and this data has label maps"):
        app(["train", str(folder), option, *given, "--output", str(tmp_path / "run")])


def test_compare(folder, tmp_path, capsys):
    options = ("--model", "test_efficientnet", "--head", "lraspp(width=8)", "--epochs", 1, "--image-size", 32)
    plans = ("--seeds", 1, "--plans", "se after backbone.blocks.1.0", "--output", tmp_path)
    assert run("compare", folder, *options, *plans, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["plan"] for row in rows] == ["none", "se after backbone.blocks.1.0"]
    assert all(0 <= row["miou"] <= 100 and "top1" not in row for row in rows)
    assert "mIoU" in (tmp_path / "report.html").read_text()
    assert run("results", tmp_path) == 0
    assert "points of mIoU" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(FoveateError, match="--export is for images with one class each"):
        run("compare", folder, *options, *plans, "--export", "onnx")


def test_explain(folder, tmp_path, capsys):
    model = fv.create_segmenter("test_efficientnet", "lraspp(width=8)", classes=("0", "1", "2"))
    fv.insert(model, "se after backbone.blocks.1.0", input_size=32)
    fv.save(model, tmp_path / "kept")
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / "region.png")
    options = ("--image-size", 32, "--output", tmp_path / "out.png", "--method", "gradcam")
    for region in ("image", tmp_path / "region.png"):
        words = ("explain", tmp_path / "kept", folder / "images/1.png", *options, "--region", region, "--target", "1")
        assert run(*words) == 0
        assert "of the pixels)" in capsys.readouterr().out
    assert run(*words, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["predictions"]
    assert 0 < row["share_of_pixels"] <= 1
    with pytest.raises(FoveateError, match="cannot be read"):
        run(*words[:-3], tmp_path / "nothing.png", "--target", "1")


def test_audit(folder, tmp_path, capsys):
    model = fv.create_segmenter("test_efficientnet", "lraspp(width=8)", classes=("0", "1", "2"))
    fv.insert(model, "se after backbone.blocks.1.0", input_size=32)
    fv.save(model, tmp_path)
    with pytest.raises(FoveateError, match="no two of these have one"):
        run("audit", tmp_path, folder, "--image-size", 32, "--json")  # one validation image
    assert run("audit", tmp_path, folder, "--image-size", 32, "--json", "--val-fraction", 0.5) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["miou"] <= 100
    assert [row["site"] for row in found["modules"]] == ["backbone.blocks.1.0"]


@pytest.mark.slow(
    reason="it exports, as tests/exporters/test_segmentation.py does",
    guards=(
        "foveate/exporters/",
        "foveate/cli/",
        "foveate/dense/",
    ),
)
def test_export_and_views(folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    model = fv.create_segmenter("test_efficientnet", "lraspp(width=8)", classes=("0", "1", "2"))
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    fv.save(model, tmp_path / "kept")
    given = ("--data", folder, "--output", tmp_path / "files", "--no-time")
    assert run("export", tmp_path / "kept", "--to", "onnx", *given, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["status"] == "ok"
    assert row["miou"] == pytest.approx(row["network_miou"], abs=1e-3)
    views = ("--flip", "--scales", 1, 1.5, "--window", 24, "--json")
    found = []
    for name in (row["path"], tmp_path / "kept"):
        assert run("evaluate", name, folder, *views) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["miou"] == pytest.approx(found[1]["miou"], abs=2e-3)
    assert run("predict", row["path"], folder / "images/3.png", *views) == 0
    assert sum(json.loads(capsys.readouterr().out)["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("network", "head", "stride", "said"),
    [
        (ModelOptions("."), "danet", 32, "--head is for a new .* and . is a saved one"),
        (ModelOptions("."), None, 16, "--output-stride is for a new .* and . is a saved one"),
        (ModelOptions(".", pretrained=True), None, 32, "--pretrained: . is a saved network"),
        (ModelOptions("test_resnet", start="identity"), None, 32, "--start is for the attention that --plan inserts"),
    ],
)
def test_options_that_would_change_nothing_are_refused(network, head, stride, said):
    with pytest.raises(FoveateError, match=said):
        DenseOptions("segment", network, head, stride, ("a", "b"))


def test_what_makes_the_network_travels_to_other_processes(folder):
    made = DenseOptions("segment", NetworkOptions("test_efficientnet"), "lraspp(width=8)", 16, ("0", "1", "2"))
    other = pickle.loads(pickle.dumps(made))  # noqa: S301 - our own: what --jobs does
    networks = []
    for one in (made, other):
        torch.manual_seed(3)
        networks.append(one(3).state_dict())
    assert all(torch.equal(value, networks[1][key]) for key, value in networks[0].items())
    untrained = fv.Recipe(epochs=0, image_size=32)
    found = fv.compare(other, "se after backbone.blocks.1.0", folder, untrained, 1, progress=False)
    assert found.setup.network == "test_efficientnet, lraspp"
