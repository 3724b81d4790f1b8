"""A detector as a file: non-maximum suppression within, its boxes matched with the network's, predict and evaluate."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.dense.detection.fixed_outputs import fixed_objects
from foveate.errors import FoveateError
from foveate.exporters.detection.checks import _compare, verify_objects
from foveate.exporters.format import find_format

pytest.importorskip("onnxruntime")
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    (folder / "images").mkdir()
    images, boxes = [], []
    for n, (height, width) in enumerate([(70, 100)] * 4 + [(96, 64)]):
        random = np.random.default_rng(n)
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "width": width, "height": height})
        boxes.append({"id": n, "image_id": n, "category_id": 1 + n % 3, "bbox": [4, 6, 30, 40]})
    names = [{"id": n + 1, "name": name} for n, name in enumerate(NAMES)]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": names}))
    return folder


def detector(head):
    """Random, with scores that are far enough apart that rounding does not change their order."""
    torch.manual_seed(0)
    model = fv.create_detector("test_efficientnet", head, classes=NAMES).eval()
    for parameter in model.decoder.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(2)
    if head.startswith("ssdlite"):
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.fill_(0.3)
    else:
        model.decoder.roi_heads.box_predictor.cls_score.bias.data[0] = -20  # little is background
    model.pretrained_cfg["input_size"] = (3, 64, 64)
    return model


@pytest.fixture(scope="module")
def model():
    plan = "ulsam(groups=4) after backbone.blocks.1.0; se after backbone.blocks.3.0"
    return fv.insert(detector("ssdlite(width=0.1)"), plan, input_size=64)


@pytest.fixture(scope="module")
def made(model, folder, tmp_path_factory):
    return fv.export(model, "onnx", tmp_path_factory.mktemp("file"), data=folder, time=False)


@pytest.mark.parametrize("head", ["ssdlite(width=0.1)", "faster_rcnn(anchor=16, hidden=64, width=32)"])
def test_outputs_of_fixed_size_hold_what_the_detector_finds(head):
    model = detector(head)
    for size in ((96, 96), (70, 100), (33, 47)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            wanted = model(image)[0]
            boxes, scores, labels = fixed_objects(model, image)
        assert boxes.shape[1] == scores.shape[1] == labels.shape[1] == (300 if head.startswith("ssd") else 100)
        there = labels[0] >= 0
        assert int(there.sum()) == len(wanted["scores"]) > 0
        assert torch.allclose(scores[0, there], wanted["scores"], atol=1e-6)
        found = {"boxes": boxes[0, there], "scores": scores[0, there], "labels": labels[0, there]}
        assert _compare(found, wanted).share == 1
        assert not scores[0, ~there].any()
        assert not boxes[0, ~there].any()


def test_the_file_is_checked_object_by_object(made, model):
    checks = {check.name: check for check in made.checks}
    assert all(check.passed for check in made.checks)
    for name in ("operations", "metadata", "objects that both find", "largest difference"):
        assert name in checks
    assert any(name.startswith("objects that both find, size ") for name in checks)
    assert made.agreement >= 0.99
    assert made.difference < 1e-3
    assert made.metadata["task"] == "detection"
    assert made.metadata["input"]["shape"] == [1, 3, "height", "width"]
    assert [output["name"] for output in made.metadata["outputs"]] == ["boxes", "scores", "labels"]
    assert "1 image at a time" in " ".join(made.notes)
    if made.map is not None:
        assert made.map == pytest.approx(made.network_map, abs=1e-3)
        assert "mAP" in str(made)
    assert model.training is False


def test_predict_and_evaluate_take_the_file(made, model, folder):
    for size in (None, 80):
        pairs = zip(*(fv.predict(one, folder / "images", image_size=size) for one in (made.path, model)), strict=True)
        for one, other in pairs:
            assert one.size == other.size
            assert one.labels == other.labels == NAMES
            of_file, of_network = (
                {"boxes": each.boxes, "scores": each.scores, "labels": each.classes} for each in (one, other)
            )
            assert _compare(of_file, of_network).share >= 0.99
    pytest.importorskip("faster_coco_eval")
    ours, theirs = (fv.evaluate(one, fv.open_detection(folder)) for one in (made.path, model))
    assert ours.map == pytest.approx(theirs.map, abs=1e-3)
    assert ours.classes == NAMES
    with pytest.raises(FoveateError, match="this is a detector, which finds objects"):
        fv.evaluate(made.path, fv.open_data("elpv", limit=4))
    with pytest.raises(FoveateError, match="which gives boxes"):
        made.open().logits(torch.zeros(1, 3, 64, 64))


def test_a_file_that_finds_something_else_is_noticed(made, model, folder):
    """Boxes moved, another class, one left out, other scores: each is more than the limit allows."""
    with torch.no_grad():
        one = fv.create_detector("test_efficientnet", "ssdlite(width=0.1)", classes=NAMES).eval()
        wanted = model(torch.randn(1, 3, 64, 96))[0]
        assert one is not model
    sure = {name: value[:20] for name, value in wanted.items()}
    assert _compare(sure, sure).share == 1
    for changed in (
        {**sure, "boxes": sure["boxes"] + 40},
        {**sure, "boxes": sure["boxes"] + 0.5},  # every box overlaps one with its score: no tie any more
        {**sure, "labels": (sure["labels"] + 1) % 3},
        {**sure, "scores": sure["scores"] * 0.9},
        {name: value[3:] for name, value in sure.items()},
        {name: value[:0] for name, value in sure.items()},
    ):
        assert _compare(changed, sure).share < 0.99
    tie = {**sure, "boxes": sure["boxes"].clone()}
    tie["boxes"][0, 0] += 0.3 * float(tie["boxes"][0, 2] - tie["boxes"][0, 0])
    found = _compare(tie, sure)
    assert (found.ties, found.alone, found.share) == (2, 0, 1)
    from foveate.exporters.detection.network import prepare_detector
    from foveate.exporters.options import ExportOptions
    from foveate.exporters.program import preprocess_for
    from foveate.exporters.sample_images import random_samples

    options = ExportOptions(batch=1, size="dynamic")
    program = prepare_detector(detector("ssdlite(width=0.1)"), options, format_name="onnx")  # without the plan
    samples = random_samples(2, preprocess_for(model, options), options)
    seen = verify_objects(program, find_format("onnx"), made.path, samples)
    assert {check.name for check in seen.checks if check.passed is False} >= {"objects that both find", "metadata"}


@pytest.mark.slow(
    reason="a second detector; the first one is exported in every run",
    guards=(
        "foveate/exporters/",
        "foveate/dense/detection/",
        "foveate/prediction/",
    ),
)
def test_faster_rcnn_that_takes_pixels_of_one_size(folder, tmp_path):
    model = detector("faster_rcnn(anchor=16, hidden=64, width=32)")
    options = {"input": "uint8", "size": (64, 96), "data": folder, "time": True}
    made = fv.export(model, "onnx", tmp_path / "rcnn.onnx", **options)
    assert made.metadata["input"]["shape"] == [1, 64, 96, 3]
    assert made.agreement >= 0.99
    assert made.milliseconds > 0
    one = next(iter(fv.predict(made.path, folder / "images/0.png")))
    assert len(one) > 0
    assert one.size == (70, 100)
    assert float(one.boxes.max()) <= 100
    with pytest.raises(FoveateError, match=r"image_size=80: .* takes images of 64x96 pixels alone"):
        fv.predict(made.path, folder / "images", image_size=80)


def test_what_a_detectors_file_cannot_be_is_refused_in_one_line(model, folder, tmp_path):
    for options, words in (
        ({"format": "pt2"}, "pt2 does not hold a detector's non-maximum suppression: detectors are written as onnx"),
        ({"precision": "fp16"}, "precision='fp16' is not for detectors"),
        ({"maps": "attention"}, "maps= is not for detectors"),
        ({"softmax": True}, "softmax=True is not for detectors"),
        ({"top": 2}, "top= is not for detectors"),
        ({"example": True}, "example=True is not for detectors"),
        ({"batch": 4}, "1 image at a time"),
        ({"data": "elpv"}, "this is a detector: give data with boxes"),
    ):
        given = {"format": "onnx", **options}
        with pytest.raises(FoveateError, match=words) as caught:
            fv.export(model, given.pop("format"), tmp_path, **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(FoveateError, match="this data has boxes, and the model is not a detector"):
        fv.export(fv.create_model("test_efficientnet"), "onnx", tmp_path, data=folder)
    masks = fv.create_detector("test_efficientnet", "mask_rcnn(width=16)", classes=2)
    with pytest.raises(FoveateError, match="its file would lose the masks"):
        fv.export(masks, "onnx", tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_neither_finds_an_object_nothing_is_called_equal(tmp_path):
    network = detector("ssdlite(width=0.1)")
    network.decoder.ssd.score_thresh = 2.0  # no score is as high
    with torch.no_grad():
        assert not len(network(torch.randn(1, 3, 64, 64))[0]["scores"])
    table = fv.export_all(network, ["onnx"], tmp_path, options={"images": 2, "time": False})
    (row,) = table.rows
    assert row.status == "run, nothing to compare"
    assert row.exported.difference is row.exported.agreement is None
    assert row.exported.ran
    assert not row.exported.compared
    assert any(note.startswith("NOTHING WAS COMPARED") for note in row.exported.notes)
    assert not table.failed


def test_a_hook_that_takes_part_is_refused(tmp_path):
    model = detector("ssdlite(width=0.1)")
    name = next(name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d))
    handle = model.get_submodule(name).register_forward_hook(lambda _module, _args, output: 2 * output)
    with pytest.raises(FoveateError, match=f"a hook of your own on '{name}' changes what it gives"):
        fv.export(model, "onnx", tmp_path, time=False)
    handle.remove()
    assert not list(tmp_path.iterdir())
