"""Training for detection: what is fitted, resumed, measured, refused and left as found."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.data.detection import DetectionData, open_detection
from foveate.data.detection.masks import InstanceMasks
from foveate.data.detection.split import Objects
from foveate.dense import create_detector
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.prediction.evaluate import evaluate
from foveate.surgery.insert import insert, plan_of
from foveate.surgery.saving.checkpoint import load, save
from foveate.training.fit import fit
from foveate.training.input.detection import BoxLoader
from foveate.training.loop import Run
from foveate.training.metrics import Diverged
from foveate.training.recipes.recipe import Recipe
from foveate.training.tasks import detection_metrics
from foveate.training.tasks.collected_objects import CollectedObjects, gathered
from foveate.training.tasks.detection_metrics import measure_objects
from foveate.whole_images import detection_size

pytest.importorskip("faster_coco_eval")
RECIPE = Recipe(epochs=2, batch_size=3, image_size=64, learning_rate=1e-2, optimiser="adamw", seed=1)
COLOURS = (230, 60, 60), (60, 230, 60)
PREPROCESS = Preprocess((64, 64), (0.5,) * 3, (0.5,) * 3, "bilinear")


def squares(folder, count=8, side=64, masks=False):
    """Two bright squares in each image, one above the other, and their boxes (and masks) in a COCO file."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, boxes = [], []
    for n in range(count):
        pixels = random.integers(0, 60, (side, side, 3)).astype(np.uint8)
        images.append({"id": n, "file_name": f"{n}.png", "width": side, "height": side})
        for half in range(2):
            size, label = int(random.integers(12, 24)), int(random.integers(0, 2))
            x, y = int(random.integers(0, side - size)), half * side // 2 + int(random.integers(0, side // 2 - size))
            pixels[y : y + size, x : x + size] = COLOURS[label]
            box = {"id": len(boxes), "image_id": n, "category_id": label + 1, "bbox": [x, y, size, size], "iscrowd": 0}
            if masks:
                box["segmentation"] = [[x, y, x + size, y, x + size, y + size, x, y + size]]
            boxes.append(box)
        Image.fromarray(pixels).save(folder / f"images/{n}.png")
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("boxes") / "squares")


@pytest.fixture(scope="module")
def data(folder):
    return open_detection(folder)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return open_detection(squares(tmp_path_factory.mktemp("masks") / "squares", masks=True))


@pytest.fixture(scope="module")
def eight(folder):
    """All images, to learn from and to be measured on."""
    data = open_detection(folder, val_fraction=0.5)
    both = {
        name: getattr(data.train, name) + getattr(data.val, name) for name in ("images", "names", "sizes", "objects")
    }
    return DetectionData("eight", data.classes, replace(data.train, **both), replace(data.val, **both))


def new_detector(head="ssdlite(width=0.1)", seed=0, classes=("red", "green")):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_detector("test_efficientnet", head, classes=classes)


def history(result):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in result.history]


@pytest.mark.slow(
    reason="it trains a detector until it knows its images",
    guards=(
        "foveate/training/",
        "foveate/dense/detection/",
        "foveate/data/detection/",
        "foveate/attention/",
    ),
)
def test_a_detector_with_attention_learns_eight_images_and_is_loaded_without_its_module(eight, folder, tmp_path):
    model = insert(new_detector("ssdlite(width=0.25)"), "se after backbone.blocks.2.0", input_size=64)
    recipe = RECIPE.with_(epochs=130, batch_size=4, augmentation="none", evaluate_every=130)
    before = torch.get_rng_state()
    result = fit(model, eight, recipe, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    found = result.evaluation
    assert found.map > 0.9
    assert found.map50 > 0.99
    assert found.headline.startswith("mAP 9")
    rows = found.per_class()
    assert [row["class"] for row in rows] == ["red", "green"]
    assert sum(row["objects"] for row in rows) == 16
    assert found.map == pytest.approx(sum(row["ap"] for row in rows) / 2)
    loaded = load(save(model, tmp_path / "kept"))
    assert str(plan_of(loaded)) == "se after backbone.blocks.2.0"
    again, own = (evaluate(network, eight, batch_size=4) for network in (loaded, model))
    assert again.map == pytest.approx(found.map)
    for one, other, before_saving in zip(again.found, found.found, own.found, strict=True):
        assert torch.equal(one, before_saving)
        assert torch.allclose(one, other, atol=1e-4)
    whole = fit(loaded, folder, recipe.with_(epochs=0), progress=False)  # a folder with a COCO file, recognised as such
    assert len(whole.evaluation.objects) == 2


def test_faster_rcnn_learns(eight):
    model = new_detector("faster_rcnn(width=16, hidden=32, anchor=8, regions=32)")
    recipe = RECIPE.with_(epochs=25, batch_size=4, learning_rate=5e-3, evaluate_every=25, augmentation="none")
    result = fit(model, eight, recipe, progress=False)
    assert result.evaluation.map50 > 0.2
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"] / 2


@pytest.mark.parametrize(
    "head, changes",
    [
        ("ssdlite(width=0.1)", {"augmentation": "standard", "workers": 2, "ema_decay": 0.5}),
        ("faster_rcnn(width=8, hidden=16, anchor=8, regions=16)", {"accumulate": 2, "batch_size": 2}),
        ("mask_rcnn(width=8, hidden=16, anchor=8, regions=16)", {"augmentation": "standard", "workers": 2}),
    ],
)
def test_resumed_bit_for_bit(head, changes, data, masked, tmp_path, monkeypatch):
    with_masks = head.startswith("mask_rcnn")
    data = masked if with_masks else data
    recipe = RECIPE.with_(**changes, checkpoint_every=1)
    whole = new_detector(head)
    wanted = fit(whole, data, recipe, progress=False)

    class Stopped(BaseException):
        pass

    true_step, steps = Run.step, 0

    def step(self, *args):
        nonlocal steps
        steps += 1
        if steps == 4:  # in the second epoch of two steps
            raise Stopped
        return true_step(self, *args)

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(Stopped):
        fit(new_detector(head), data, recipe, output=tmp_path, progress=False)
    monkeypatch.setattr(Run, "step", true_step)
    model = new_detector(head)
    found = fit(model, data, recipe.with_(workers=0), output=tmp_path, resume=True, progress=False)
    first, second = model.state_dict(), whole.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in second)
    assert history(found) == history(wanted)
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    masks = "eval_mask_map,eval_mask_map50," if with_masks else ""
    assert lines[0] == f"epoch,train_loss,eval_map,eval_map50,{masks}lr,seconds,images_per_second"
    if with_masks:
        both = zip(found.evaluation.masks, wanted.evaluation.masks, strict=True)
        assert all(one.runs == other.runs for one, other in both)
        assert all(
            len(one) == len(rows) for one, rows in zip(wanted.evaluation.masks, wanted.evaluation.found, strict=True)
        )
    assert all(torch.equal(a, b) for a, b in zip(found.evaluation.found, wanted.evaluation.found, strict=True))


def test_what_is_for_other_tasks_is_refused(data, monkeypatch):
    refused = [
        ({"mixup": 0.1}, "mixup"),
        ({"augmentation": "randaugment"}, "randaugment"),
        ({"loss": "dice"}, "loss='dice'"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"head_init_scale": 0.1}, "head_init_scale"),
    ]
    for changes, word in refused:
        with pytest.raises(FoveateError, match=f"{word}.* does not go with detection"):
            fit(new_detector(), data, RECIPE.with_(**changes), progress=False)
    with pytest.raises(FoveateError, match="a teacher does not go with detection"):
        fit(new_detector(), data, RECIPE, teacher=new_detector(), progress=False)
    with pytest.raises(FoveateError, match="Linear is not a detector: build one with create_detector"):
        fit(torch.nn.Linear(2, 2), data, RECIPE, progress=False)
    with pytest.raises(FoveateError, match=r"3 classes and the data has 2: build it with create_detector"):
        fit(new_detector(classes=3), data, RECIPE, progress=False)
    with pytest.raises(FoveateError, match="class 0 of the model is called 'green'"):
        fit(new_detector(classes=("green", "red")), data, RECIPE, progress=False)
    with pytest.raises(FoveateError, match="learns from masks of the objects, and the train images have only boxes"):
        fit(new_detector("mask_rcnn(width=8, hidden=8)"), data, RECIPE, progress=False)
    with pytest.raises(FoveateError, match="the model's classes .3 without names. are not the data's"):
        evaluate(new_detector(classes=3), data)
    with pytest.raises(FoveateError, match="it is 'val' or 'train'"):
        evaluate(new_detector(), data, part="all")
    monkeypatch.setattr(detection_metrics, "_BACKEND", "no_such_package")
    with pytest.raises(FoveateError, match=r"pip install 'foveate\[detection\]'"):
        fit(new_detector(), data, RECIPE, progress=False)


def test_the_trunk_can_be_frozen(data):
    model = new_detector()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fit(model, data, RECIPE.with_(epochs=1, freeze="trunk", head_learning_rate_scale=2.0), progress=False)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed
    assert all(key.startswith("decoder.") for key in changed)


def test_a_bad_image_stops_the_run_with_its_name(tmp_path):
    folder = squares(tmp_path / "copy", count=4)
    for n in range(4):
        path = folder / f"images/{n}.png"
        path.write_bytes(path.read_bytes()[:400])
    for workers in (0, 1):
        with pytest.raises(FoveateError, match=r"images/\d\.png"):
            fit(new_detector(), folder, RECIPE.with_(workers=workers), progress=False)


def test_weights_that_are_not_finite_are_not_measured_as_zero(data):
    for head in ("ssdlite(width=0.1)", "faster_rcnn(width=8, hidden=8)"):
        model = new_detector(head)
        with torch.no_grad():
            next(model.decoder.parameters()).fill_(float("nan"))
        with pytest.raises(FoveateError, match="NaN or infinite"):
            evaluate(model, data)
    with pytest.raises(Diverged):
        fit(new_detector(), data, RECIPE.with_(learning_rate=1e30, optimiser="sgd", epochs=3), progress=False)


@pytest.mark.parametrize("head", ["ssdlite(width=0.1)", "mask_rcnn(width=8, hidden=16, anchor=8, regions=16)"])
def test_a_detector_in_another_dtype_is_measured_and_not_trained(head, masked):
    model = new_detector(head)
    expected = evaluate(model, masked)
    found = evaluate(model.double(), masked)
    for one, other in zip(found.found, expected.found, strict=True):
        torch.testing.assert_close(one[:5], other[:5], atol=1e-2, rtol=1e-3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(
        FoveateError, match=r"the model is in float64, and fit trains weights in float32: .*model\.float"
    ):
        fit(model, masked, RECIPE, progress=False)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(FoveateError, match="a detector in bfloat16 cannot choose among its boxes: give model.float"):
        evaluate(model.bfloat16(), masked)


def seen(pixels):
    """The box of what is bright, in pixels."""
    bright = (pixels.float() > 150).any(0).nonzero()
    (top, left), (bottom, right) = bright.amin(0).tolist(), bright.amax(0).tolist()
    return torch.tensor([left, top, right + 1, bottom + 1])


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kind", [None, "none", "flip", "standard"])
def test_boxes_and_masks_move_with_their_images(kind, masks, masked):
    data = masked
    loader = BoxLoader(data.train, PREPROCESS, kind, seed=3, masks=masks)
    state = torch.get_rng_state()
    order = [[(epoch, n) for n in range(4)] for epoch in range(3)]
    batches = list(loader.batches(order))
    assert torch.equal(torch.get_rng_state(), state)
    sides, flipped = set(), 0
    for inputs, targets in batches:
        assert len(inputs.images) == len(targets) == 4
        for n, (pixels, target) in enumerate(zip(inputs.images, targets, strict=True)):
            sides.add(pixels.shape[-1])
            assert target.input_size == tuple(pixels.shape[-2:])
            around = torch.cat([target.boxes[:, :2].amin(0), target.boxes[:, 2:].amax(0)])
            assert (seen(pixels) - around).abs().max() <= 2.5
            assert (target.masks is not None) == (masks and kind is not None)
            if target.masks is not None:
                bright = pixels.amax(0) > 120
                assert (target.masks.any(0) != bright).float().mean() < 0.02
                for mask, box in zip(target.masks, target.boxes, strict=True):
                    assert (seen(mask.float()[None] * 255) - box).abs().max() <= 1.5
            plain = torch.from_numpy(data.train.objects[n].boxes) * pixels.shape[-1] / 64
            flipped += not torch.allclose(plain, target.boxes, atol=1e-3)
    assert (len(sides) > 3) == (kind == "standard")
    assert (0 < flipped < 12) == (kind in ("flip", "standard"))
    again = list(loader.batches(order))
    for (one, _), (other, _) in zip(batches, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))


def test_an_evaluation_has_batches_of_one_size_and_long_images_stay_within_bounds():
    assert detection_size((480, 640), 96) == (96, 128)
    assert detection_size((100, 1000), 60) == (10, 100)
    assert detection_size((1, 1000), 60) == (1, 100)


def test_average_precision_by_hand_and_as_torchmetrics_counts_it():
    from torchmetrics.detection import MeanAveragePrecision

    def objects(*rows):
        table = np.array(rows, np.float32).reshape(-1, 6)
        return Objects(table[:, :4], table[:, 4].astype(np.int64), table[:, 5].astype(bool))

    there = [
        objects((0, 0, 10, 10, 0, 0), (20, 20, 40, 40, 2, 0), (50, 50, 60, 60, 0, 1)),
        objects((0, 0, 10, 10, 0, 0)),
        objects(),
    ]
    found = [
        torch.tensor([[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [20, 20, 40, 38, 0.7, 2]]),
        torch.tensor([[70.0, 70, 80, 80, 0.95, 0]]),
        torch.zeros(0, 6),
    ]
    result = measure_objects(found, there, ("a", "b", "c", "d"))
    # Class a: right at .9, wrong at .95, and the ignored one counts nowhere: precision 1/2 up to a recall of 1/2.
    assert result.ap[0].tolist() == pytest.approx([0.5 * 51 / 101] * 2)
    # Class c: intersection over union .9, which 9 of the 10 thresholds take.
    assert result.ap[2].tolist() == pytest.approx([0.9, 1.0])
    assert result.map == pytest.approx((0.5 * 51 / 101 + 0.9) / 2)
    assert [row["ap"] for row in result.per_class()[1::2]] == [None, None]
    assert result.counts.tolist() == [[2, 2], [0, 0], [1, 1], [0, 0]]
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    metric.update(
        [{"boxes": f[:, :4], "scores": f[:, 4], "labels": f[:, 5].long()} for f in found],
        [
            {
                "boxes": torch.tensor(o.boxes),
                "labels": torch.tensor(o.labels),
                "iscrowd": torch.tensor(o.ignored).long(),
            }
            for o in there
        ],
    )
    values = metric.compute()
    for name, value in (("map", result.map), ("map_50", result.map50), ("map_75", result.map75)):
        assert float(values[name]) == pytest.approx(value)
    with pytest.raises(FoveateError, match="no image to evaluate on has an object"):
        measure_objects([torch.zeros(0, 6)], [objects((50, 50, 60, 60, 0, 1))], ("a",))
    with pytest.raises(FoveateError, match="1 class names for 4 classes"):
        result.per_class(["a"])


@pytest.mark.parametrize("masks", [False, True])
def test_rows_of_several_processes_come_back_in_their_order(masks):
    random = np.random.default_rng(0)
    found = [torch.arange(6.0 * n).view(n, 6) for n in (2, 0, 3)]
    own = [InstanceMasks.of(random.integers(0, 2, (len(of), 9, 7))) for of in found] if masks else None
    there = [InstanceMasks.of(random.integers(0, 2, (n, 5, 6))) for n in (1, 0, 2)]
    there[2] = InstanceMasks((5, 6), (None, there[2].runs[1]))
    objects = [
        Objects(np.full((n, 4), n, np.float32), np.arange(n), np.arange(n) > 0, of if masks else None)
        for n, of in zip((1, 0, 2), there, strict=True)
    ]

    def gather(rows):  # as of a second process with the same images
        return torch.stack([rows, rows], 1).flatten(0, 1)

    every, known, found_masks = gathered(CollectedObjects(found, objects, own), gather)
    assert [len(rows) for rows in every] == [2, 2, 0, 0, 3, 3]
    assert torch.equal(every[5], found[2])
    assert [len(one) for one in known] == [1, 1, 0, 0, 2, 2]
    assert known[4].ignored.tolist() == [False, True]
    assert known[4].labels.dtype == np.int64
    if not masks:
        assert found_masks is known[4].masks is None
        return
    assert [(one.size, one.runs) for one in found_masks[::2]] == [(one.size, one.runs) for one in own]
    assert [(one.masks.size, one.masks.runs) for one in known[1::2]] == [(one.size, one.runs) for one in there]
    assert known[4].masked.tolist() == [False, True]
