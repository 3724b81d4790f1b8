"""A segmentation network as a file: checked pixel by pixel, and used by predict and evaluate."""

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.dense import create_segmenter
from foveate.errors import FoveateError

pytest.importorskip("onnxruntime")
NAMES = ("a", "b", "c")
PLAN = "ulsam(groups=4) after backbone.blocks.1.0; position after backbone.blocks.4.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    for part in ("train", "val"):
        for n, size in enumerate([(40, 56), (40, 56), (40, 56), (56, 44)]):
            random = np.random.default_rng(n)
            for kind in ("images", "annotations"):
                (folder / kind / part).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / part / f"{n}.png")
            Image.fromarray(random.integers(0, 3, size, dtype=np.uint8)).save(
                folder / "annotations" / part / f"{n}.png"
            )
    (folder / "classes.txt").write_text("a\nb\nc\n")
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_segmenter("test_efficientnet", "lraspp(width=8)", classes=NAMES, taps=(1, 4))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # else a random network says the same everywhere
            module.running_var.fill_(0.5)
    model.pretrained_cfg["input_size"] = (3, 48, 48)
    return fv.insert(model, PLAN, input_size=48)


@pytest.fixture(scope="module")
def made(model, folder, tmp_path_factory):
    return fv.export(model, "onnx", tmp_path_factory.mktemp("file"), data=folder, time=False)


def test_the_file_is_checked_pixel_by_pixel(made):
    checks = {check.name: check for check in made.checks}
    assert all(check.passed for check in made.checks)
    for name in ("scores", "agreement of pixels", "mIoU against the network", "batch of 1", "batch of 3"):
        assert name in checks
    assert any(name.startswith("size ") for name in checks)  # another size than that at which it was followed
    assert made.agreement > 0.999
    assert made.miou == pytest.approx(made.network_miou, abs=1e-3)
    assert "3 images of" in made.images
    assert "56x" not in made.images  # the size that most have
    assert "mIoU" in str(made)
    assert made.metadata["task"] == "segmentation"
    assert made.metadata["outputs"] == [{"name": "scores", "axes": "b k h w"}]
    assert made.metadata["input"]["shape"] == ["batch", 3, "height", "width"]


def test_predict_and_evaluate_take_the_file(made, model, folder):
    for options in ({}, {"image_size": 64, "flip": True, "window": 48}):
        ours, theirs = (fv.evaluate(one, folder, **options) for one in (made.path, model))
        assert ours.classes == theirs.classes
        assert ours.miou == pytest.approx(theirs.miou, abs=2e-3)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
    for one, other in zip(*(fv.predict(each, folder / "images/val") for each in (made.path, model)), strict=True):
        assert one.labels == NAMES
        assert one.classes.shape == other.classes.shape
        assert (one.classes == other.classes).float().mean() > 0.999
    with pytest.raises(FoveateError, match="give it images with label maps"):
        fv.evaluate(made.path, fv.open_data("elpv", limit=4))


@pytest.mark.slow(
    reason="a third export; of classification it is tried in every run",
    guards=(
        "foveate/exporters/",
        "foveate/dense/",
    ),
)
def test_a_file_of_one_size_and_batch(model, folder, tmp_path):
    made = fv.export(model, "onnx", tmp_path, data=folder, size=(48, 64), batch=2, input="uint8", time=False)
    assert made.metadata["input"]["shape"] == [2, 48, 64, 3]
    assert "4 images of" in made.images  # all are brought to that size
    masks = list(fv.predict(made.path, folder / "images/val"))
    assert [tuple(mask.classes.shape) for mask in masks] == [(40, 56)] * 3 + [(56, 44)]
    with pytest.raises(FoveateError, match="takes images of 48x64 pixels alone"):
        fv.predict(made.path, folder / "images/val", image_size=32)


@pytest.mark.slow(
    reason="a second export; of classification a wrong file is tried in every run",
    guards=(
        "foveate/exporters/",
        "foveate/dense/",
    ),
)
def test_a_wrong_file_is_not_kept(model, folder, tmp_path, monkeypatch):
    from foveate.exporters.program import DeployableNetwork

    true = DeployableNetwork.forward

    def forward(self, images):
        scores, *rest = true(self, images)
        return (scores.roll(1, 1), *rest) if torch.compiler.is_exporting() else (scores, *rest)

    monkeypatch.setattr(DeployableNetwork, "forward", forward)
    with pytest.raises(FoveateError, match="does not do what the network does.*agreement of pixels"):
        fv.export(model, "onnx", tmp_path, data=folder, time=False)
    assert not list(tmp_path.iterdir())


def test_refused(model, folder, tmp_path):
    for options, match in (
        ({"precision": "int8", "data": folder}, "int8' is for classifiers"),
        ({"maps": "attention"}, "maps= is for classifiers"),
        ({"softmax": True}, "softmax"),
        ({"example": True}, "example"),
        ({"data": fv.open_data("elpv", limit=4)}, "give data with label maps"),
    ):
        with pytest.raises(FoveateError, match=match):
            fv.export(model, "onnx", tmp_path, **options)
    with pytest.raises(FoveateError, match="the model is a classifier"):
        fv.export(fv.create_model("test_efficientnet", num_classes=3), "onnx", tmp_path, data=folder)
