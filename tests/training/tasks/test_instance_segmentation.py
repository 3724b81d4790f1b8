"""Mask R-CNN learns masks: what is fitted, measured, written, read back, said and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import foveate as fv
from foveate.data.detection import DetectionData, open_detection
from foveate.data.detection.masks import InstanceMasks
from foveate.data.detection.split import Objects
from foveate.errors import FoveateError
from foveate.training.tasks.collected_objects import masks_of_the_file
from foveate.training.tasks.detection import InstanceSegmentation
from foveate.training.tasks.detection_metrics import measure_objects

coco = pytest.importorskip("faster_coco_eval.core.mask")
HEAD = "mask_rcnn(width=16, hidden=32, anchor=8, regions=32)"
COLOURS = (230, 60, 60), (60, 230, 60)


def shapes(folder, count=8, side=64):
    """A square or a triangle in each half of an image, with boxes and polygons in a COCO file."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, objects = [], []
    for n in range(count):
        picture = Image.fromarray(random.integers(0, 60, (side, side, 3)).astype(np.uint8))
        images.append({"id": n, "file_name": f"{n}.png", "width": side, "height": side})
        for half in range(2):
            size, label = int(random.integers(16, 28)), int(random.integers(0, 2))
            x, y = int(random.integers(0, side - size)), half * side // 2 + int(random.integers(0, side // 2 - size))
            top = [x + size / 2, y] if label else [x + size, y, x, y]
            points = [x, y + size, x + size, y + size, *top]
            ImageDraw.Draw(picture).polygon(points, fill=COLOURS[label])
            one = {"id": len(objects), "image_id": n, "category_id": label + 1, "bbox": [x, y, size, size]}
            objects.append(one | {"iscrowd": 0, "segmentation": [points]})
        picture.save(folder / f"images/{n}.png")
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "triangle"}]
    (folder / "masks.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes(tmp_path_factory.mktemp("masks") / "shapes")


@pytest.fixture(scope="module")
def data(folder):
    return open_detection(folder, val_fraction=0.5)


def new_detector(head=HEAD, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fv.create_detector("test_efficientnet", head, classes=("square", "triangle"))


def without_masks(data):
    parts = {
        name: replace(part, objects=tuple(replace(one, masks=None) for one in part.objects))
        for name, part in (("train", data.train), ("val", data.val))
    }
    return replace(data, **parts)


@pytest.mark.slow(
    reason="it trains Mask R-CNN for a hundred epochs",
    guards=("foveate/dense/detection/", "foveate/training/tasks/", "foveate/training/input/detection.py"),
)
def test_masks_of_eight_images_are_learned(data):
    both = {
        name: getattr(data.train, name) + getattr(data.val, name) for name in ("images", "names", "sizes", "objects")
    }
    eight = DetectionData("eight", data.classes, replace(data.train, **both), replace(data.val, **both))
    model = fv.insert(
        new_detector("mask_rcnn(width=32, hidden=64, anchor=8, regions=32)"),
        "se after backbone.blocks.2.0",
        input_size=64,
    )
    recipe = fv.Recipe(
        epochs=120, batch_size=4, image_size=64, learning_rate=5e-3, optimiser="adamw", seed=1, augmentation="none"
    )
    found = fv.fit(model, eight, recipe.with_(evaluate_every=120), progress=False).evaluation
    assert found.mask_map > 0.8
    assert found.mask_map50 > 0.95
    triangle = found.per_class()[1]
    assert triangle["mask_ap"] > 0.75
    for masks, rows in zip(found.masks, found.found, strict=True):  # a triangle has half of its box
        for area, row in zip(masks.areas(), rows.tolist(), strict=True):
            share = area / ((row[2] - row[0]) * (row[3] - row[1]))
            assert row[4] < 0.9 or (share < 0.7) == (row[5] == 1)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A few steps: it finds something everywhere."""
    model = new_detector("mask_rcnn(width=16, hidden=32, anchor=8, regions=32, threshold=0.0, detections=6)")
    recipe = fv.Recipe(epochs=1, batch_size=4, image_size=64, learning_rate=1e-3, optimiser="adamw", seed=1)
    output = tmp_path_factory.mktemp("run")
    return model, fv.fit(model, data, recipe, output=output, progress=False), output


def test_an_evaluation_has_boxes_and_masks_and_the_run_is_loaded(trained, data, folder):
    model, result, output = trained
    found = result.evaluation
    assert (len(found.masks), len(found.objects)) == (4, 4)
    assert set(result.history[-1]) >= {"eval_map", "eval_mask_map", "eval_mask_map50"}
    assert set(found.per_class()[0]) == {"class", "images", "objects", "ap", "ap50", "mask_ap", "mask_ap50"}
    assert found.to_dict()["mask_map"] == found.mask_map
    assert "mask mAP" in found.headline
    assert "mask mAP75" in found._repr_html_()
    assert "mask mAP" in result._repr_html_()
    again = fv.evaluate(output, folder)  # 2 of the 8 images
    assert again.mask_map is not None
    loaded = fv.evaluate(fv.load(output), data)
    own = fv.evaluate(model, data)
    for one, other in zip(loaded.masks, own.masks, strict=True):
        assert one.runs == other.runs
        assert one.size == (64, 64)
    boxes_alone = fv.evaluate(model, without_masks(data))
    assert boxes_alone.map == own.map
    assert boxes_alone.mask_map is boxes_alone.mask_ap is None
    assert "mask" not in boxes_alone.headline


def test_masks_are_pasted_at_the_size_of_the_file():
    one = {
        "boxes": torch.tensor([[2.0, 4, 12, 10], [0, 0, 3, 3], [10, 5, 20, 20]]),
        "scores": torch.tensor([0.2, 0.9, 0.5]),
        "labels": torch.tensor([0, 1, 0]),
        "masks": torch.stack([torch.ones(1, 28, 28), torch.zeros(1, 28, 28), torch.ones(1, 28, 28)]),
    }
    one["masks"][2, :, :, 14:] = 0  # the left half
    found = masks_of_the_file(one, (80, 60), (20, 20))
    assert found.size == (80, 60)
    empty, half, whole = found.array()
    assert not empty.any()
    rows, columns = half.nonzero()
    assert abs(rows.min() - 20) <= 2
    assert rows.max() == 79  # cut off at the edge
    assert abs(columns.min() - 30) <= 1
    assert abs(columns.max() + 1 - 45) <= 1
    rows, columns = whole.nonzero()
    wanted = torch.tensor([16, 40, 6, 36])
    given = torch.tensor([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1])
    assert (wanted - given).abs().max() <= 2
    assert found.areas() == [0, int(half.sum()), int(whole.sum())]
    assert len(masks_of_the_file(one, (80, 60), (20, 20), most=2)) == 2


def test_mask_map_is_that_of_coco_and_an_object_without_a_mask_counts_nowhere():
    random = np.random.default_rng(3)
    truth, found, masks, boxes = [], [], [], []
    for _ in range(6):
        blobs = np.zeros((3, 30, 40), np.uint8)
        for n in range(3):
            y, x = random.integers(0, 18), random.integers(0, 28)
            blobs[n, y : y + random.integers(5, 12), x : x + random.integers(5, 12)] = 1
        shifted = np.roll(blobs, random.integers(-1, 2), 2)
        truth.append(InstanceMasks.of(blobs))
        masks.append(InstanceMasks.of(shifted))
        boxes.append(np.zeros((3, 4), np.float32))
        rows = torch.zeros(3, 6)
        rows[:, 4], rows[:, 5] = torch.from_numpy(random.random(3)), torch.tensor([0, 1, 0])
        found.append(rows[rows[:, 4].argsort(descending=True)])
        masks[-1] = masks[-1].subset(rows[:, 4].argsort(descending=True).tolist())
    labels, ignored = np.array([0, 1, 0]), np.zeros(3, np.bool_)
    there = [Objects(box, labels, ignored, mask) for box, mask in zip(boxes, truth, strict=True)]
    result = measure_objects(found, there, ("a", "b"), masks)
    assert result.mask_map == pytest.approx(by_coco(found, masks, there), abs=1e-9)
    assert 0.1 < result.mask_map < 1
    assert result.mask_map != result.map

    nothing = Objects(boxes[0][:0], labels[:0], ignored[:0], InstanceMasks((30, 40), ()))
    wrong = torch.tensor([[0, 0, 40, 30, 1.0, 0], [0, 0, 40, 30, 0.5, 1]])
    more = [*found, wrong], [*there, nothing], [*masks, masks[0].subset([0, 1])]
    lower = measure_objects(more[0], more[1], ("a", "b"), more[2])
    assert lower.mask_map == pytest.approx(by_coco(more[0], more[2], more[1]), abs=1e-9)
    assert lower.mask_map < result.mask_map - 0.01  # what is found where nothing is counts as wrong

    known = measure_objects([found[0]], [there[0]], ("a", "b"), [masks[0]])
    box = np.array([[0, 0, 40, 30]], np.float32)
    more = Objects(
        np.concatenate([there[0].boxes, box]),
        np.append(labels, 1),
        np.zeros(4, np.bool_),
        InstanceMasks((30, 40), (*truth[0].runs, None)),
    )
    extra = torch.tensor([[0, 0, 40, 30, 1.0, 1]])
    other = InstanceMasks((30, 40), (*InstanceMasks.of(np.ones((1, 30, 40))).runs, *masks[0].runs))
    with_unknown = measure_objects([torch.cat([extra, found[0]])], [more], ("a", "b"), [other])
    assert with_unknown.mask_ap.tolist() == known.mask_ap.tolist()
    assert with_unknown.ap[1, 0] != known.ap[1, 0]  # as a box it counts


def test_where_nothing_is_found_the_mask_map_is_0_and_a_note_says_so(data):
    empty = [InstanceMasks(one.masks.size, ()) for one in data.val.objects]
    result = measure_objects([torch.zeros(0, 6)] * len(empty), data.val.objects, data.classes, empty)
    assert (result.map, result.mask_map, result.mask_map50) == (0, 0, 0)
    assert not result.mask_ap.nan_to_num(0).any()
    assert "no object was found where one is" in InstanceSegmentation().notes(result)[0]


def by_coco(found, masks, there):
    """The mask mAP by faster-coco-eval's own program, from COCO's JSON."""
    from faster_coco_eval import COCO, COCOeval_faster

    annotations, results = [], []
    for image, (rows, own, objects) in enumerate(zip(found, masks, there, strict=True), 1):
        for label, run, area in zip(objects.labels, objects.masks.to_coco(), objects.masks.areas(), strict=True):
            number = len(annotations) + 1
            one = {"id": number, "image_id": image, "category_id": int(label) + 1, "segmentation": run, "iscrowd": 0}
            annotations.append(one | {"area": area, "bbox": coco.toBbox([run])[0].tolist()})
        for row, run in zip(rows.tolist(), own.to_coco(), strict=True):
            results.append({"image_id": image, "category_id": int(row[5]) + 1, "segmentation": run, "score": row[4]})
    images = [{"id": image, "height": 30, "width": 40} for image in range(1, len(found) + 1)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    truth = COCO({"images": images, "annotations": annotations, "categories": categories})
    counted = COCOeval_faster(truth, truth.loadRes(results), "segm", print_function=lambda *_: None)
    counted.evaluate()
    counted.accumulate()
    counted.summarize()
    return counted.stats[0]


def test_predictions_are_written_drawn_and_read_back(trained, folder, tmp_path):
    model, _, _ = trained
    picture = Image.open(folder / "images/0.png").resize((100, 60))
    picture.save(tmp_path / "0.png")
    one = next(iter(fv.predict(model, tmp_path / "0.png")))
    assert one.masks.array().shape == (len(one), 60, 100)
    assert len(one) > 0
    assert (
        fv.predict(model, tmp_path / "0.png").write(tmp_path / "out.json", pictures=tmp_path / "drawn", threshold=0)
        == 1
    )
    content = json.loads((tmp_path / "out.json").read_text())
    assert [
        coco.decode(entry["segmentation"]).tolist() for entry in content["annotations"]
    ] == one.masks.array().tolist()
    assert [entry["area"] for entry in content["annotations"]] == one.masks.areas()
    assert one.to_dict()["objects"][0]["segmentation"] == content["annotations"][0]["segmentation"]
    assert (tmp_path / "drawn/000001_0.png").is_file()
    picture.save(tmp_path / "1.png")
    both = {**content, "images": [content["images"][0], {**content["images"][0], "id": 2, "file_name": "1.png"}]}
    (tmp_path / "out.json").write_text(json.dumps(both))
    data = open_detection(tmp_path / "out.json", on_bad_image="skip", val_fraction=0.5)
    first = next(part for part in (data.train, data.val) if len(part.objects[0]))
    usable = [run for run, area in zip(one.masks.runs, one.masks.areas(), strict=True) if area]
    assert set(first.objects[0].masks.runs) - {None} <= set(usable)


def test_a_picture_shows_masks_in_the_colours_of_their_classes():
    from foveate.prediction.detection_result import ImageDetections

    image = Image.new("RGB", (100, 80), (200, 200, 200))
    masks = np.zeros((2, 80, 100), np.uint8)
    masks[0, 20:30, 20:30] = masks[1, 50:60, 60:70] = 1
    item = type("Item", (), {"load": staticmethod(lambda: image)})()
    boxes, scores = torch.tensor([[10.0, 10, 40, 40], [55, 45, 80, 70]]), torch.tensor([0.9, 0.3])
    given = (boxes, scores, torch.tensor([1, 0]), ("cat", "dog"), (80, 100), None, item, InstanceMasks.of(masks))
    drawn = np.asarray(ImageDetections("a.png", *given).picture())[:80]
    grey = (drawn == 200).all(-1)
    assert not grey[20:30, 20:30].any()
    assert grey[12:18, 12:18].all()
    assert grey[50:60, 60:70].all()  # of too low a score


def test_what_does_not_go_together_is_refused_or_said(data, monkeypatch, capsys):
    recipe = fv.Recipe(epochs=0, batch_size=4, image_size=64)
    no_masks = without_masks(data)
    for bad, part in ((no_masks, "train"), (replace(data, val=no_masks.val), "val")):
        with pytest.raises(FoveateError, match=f"learns from masks of the objects, and the {part} images have only"):
            fv.fit(new_detector(), bad, recipe, progress=False)
    fv.fit(new_detector("faster_rcnn(width=8, hidden=8)"), data, recipe)
    assert "masks of the data are not used: this detector finds boxes" in capsys.readouterr().err
    some = data.train.objects[0]
    fewer = replace(some, masks=InstanceMasks(some.masks.size, (None, *some.masks.runs[1:])))
    partly = replace(data, train=replace(data.train, objects=(fewer, *data.train.objects[1:])))
    result = fv.fit(new_detector(), partly, replace(recipe, epochs=1))
    assert "objects without a mask, which are left out: 1, the first in" in capsys.readouterr().err
    assert result.history[0]["train_loss"] > 0
    assert partly.fingerprint != data.fingerprint != no_masks.fingerprint
    monkeypatch.setattr("foveate.data.detection.masks._PACKAGE", "no_such_package")
    with pytest.raises(FoveateError, match="masks need the package faster-coco-eval"):
        list(fv.predict(new_detector(), Image.new("RGB", (64, 64))))
    with pytest.raises(FoveateError, match="masks need the package faster-coco-eval"):
        fv.evaluate(new_detector(), data)


def test_explained_and_audited_by_its_boxes(trained, data, folder):
    model = fv.insert(new_detector(HEAD[:-1] + ", threshold=0.0)"), "se after backbone.blocks.2.0", input_size=64)
    shown = fv.explain(model, folder / "images/0.png", "gradcam", image_size=64)
    assert len(shown.maps) == 1
    assert bool(shown.maps[0].values.isfinite().all())
    found = fv.audit(model, data, image_size=64)
    assert "mAP" in str(found)
    with pytest.raises(FoveateError, match="mask_rcnn is not exported, for its file would lose the masks"):
        fv.export(model, "onnx", folder / "exported")
