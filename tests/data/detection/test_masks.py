"""Masks of COCO's files: polygons and run lengths give the same pixels; each fault is named, counted and left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.cli.app import main
from foveate.data.detection import check_detection, open_detection
from foveate.data.detection.masks import InstanceMasks, parse_mask
from foveate.errors import FoveateError

pytest.importorskip("faster_coco_eval")
HEIGHT, WIDTH = 30, 40
WHOLE = (0, 0, WIDTH, HEIGHT)
SQUARE = [5, 6, 15, 6, 15, 16, 5, 16]


def pixels(run):
    return InstanceMasks((HEIGHT, WIDTH), (run,)).array()[0]


def runs_of(mask):
    """COCO's run lengths, slowly: column by column, the first run is of zeros."""
    lengths, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]), st.integers(1, 60), st.integers(1, 60))
def test_masks_are_encoded_and_read_as_coco_defines_them(seed, share, height, width):
    masks = (np.random.default_rng(seed).random((2, height, width)) < share).astype(np.uint8)
    kept = InstanceMasks.of(masks)
    assert np.array_equal(kept.array(), masks)
    assert kept.areas() == masks.sum((1, 2)).tolist()
    for compressed, mask in zip(kept.to_coco(), masks, strict=True):
        plain = {"size": [height, width], "counts": runs_of(mask)}
        for runs in (plain, json.loads(json.dumps(compressed))):
            run, faults = parse_mask(runs, (height, width), (0, 0, width, height))
            assert (run is not None, len(faults)) == (mask.any(), not mask.any())
            if run is not None:
                assert np.array_equal(InstanceMasks((height, width), (run,)).array()[0], mask)


def test_polygons_are_filled_cut_off_and_put_together():
    wanted = np.zeros((HEIGHT, WIDTH), np.uint8)
    wanted[6:16, 5:15] = 1
    run, faults = parse_mask([SQUARE], (HEIGHT, WIDTH), (5, 6, 15, 16))
    assert np.array_equal(pixels(run), wanted)
    assert faults == ()
    two = [SQUARE, [30, 20, 50, 20, 50, 40, 30, 40]]
    run, faults = parse_mask(two, (HEIGHT, WIDTH), WHOLE)
    wanted[20:, 30:] = 1
    assert (pixels(run) != wanted).sum() <= 30  # the edge itself
    assert faults == ("leaves the image of 40x30 pixels",)
    assert parse_mask([[0, 0, 40.9, 0, 40, 30]], (HEIGHT, WIDTH), WHOLE)[1] == ()  # rounded
    for nothing in (None, []):
        assert parse_mask(nothing, (HEIGHT, WIDTH), WHOLE) == (None, ())


FAULTS = {
    "has a polygon with 2 points, and 3 are the least": [[5, 6, 15, 6]],
    "has a polygon that is not a list of x, y": [[5, 6, 15, 6, 9, 16, 3]],
    "is neither a list of polygons nor run lengths": "polygon",
    "has a polygon far outside the image of 40x30": [[5, 6, 1e12, 6, 5, 16]],
    "has no pixel in the image of 40x30": [[5, 6, 9, 6, 7, 6]],
    "leaves the image of 40x30": [[5, 6, 45, 6, 5, 16]],
    "lies outside the object's box": [[30, 20, 38, 20, 38, 28]],
    "is of an image of 41x30 pixels, and this one has 40x30": {"size": [30, 41], "counts": [0, 1230]},
    "has run lengths of 1100 pixels, and the image has 1200": {"size": [30, 40], "counts": [100, 1000]},
    "has run lengths of no number of pixels": {"size": [30, 40], "counts": [-5, 1205]},
}
HOSTILE = [
    [["a"] * 6],
    [[float("nan")] * 6],
    [[10**400] * 6],
    [[True] * 6],
    [None],
    {"size": None, "counts": "b:d0"},
    {"size": [30, 40], "counts": "zzzz"},
    {"size": [30, 40], "counts": "o" * 10_000},
    {"size": [30, 40], "counts": [10**30]},
    {"size": [30, 40], "counts": ""},
    {"size": [30, 40], "counts": None},
    {"counts": [1200]},
    5,
]


@pytest.mark.parametrize("segmentation", HOSTILE, ids=range(len(HOSTILE)))
def test_what_a_hostile_file_says_is_a_fault_and_not_a_crash(segmentation):
    run, faults = parse_mask(segmentation, (HEIGHT, WIDTH), WHOLE)
    assert run is None
    assert len(faults) == 1
    assert len(faults[0]) < 120


def test_every_fault_is_named_and_counted_and_the_object_keeps_its_box(writers, tmp_path, capsys):
    def spoil(content):
        box = {"image_id": 1, "category_id": 7, "iscrowd": 0, "bbox": [4, 5, 12, 12]}
        masks = [[SQUARE], *FAULTS.values(), None]
        content["annotations"] += [{"id": 50 + n, **box, "segmentation": one} for n, one in enumerate(masks)]
        content["annotations"].append(
            {"id": 90, **box, "iscrowd": 1, "segmentation": {"size": [30, 40], "counts": [0, 1200]}}
        )

    root = writers[0](tmp_path / "data", spoil)
    with pytest.raises(FoveateError, match=r"1.png: the mask of an object of 'cat' has a polygon with 2 points.*skip"):
        open_detection(root)
    data = open_detection(root, on_bad_image="skip")
    reasons = [reason for _, reason in data.bad if "the mask of an object of 'cat'" in reason]
    for words in FAULTS:
        assert sum(words in reason for reason in reasons) == 1, words
    assert len(data.bad) == len(FAULTS)
    objects = data.train.objects[1]
    assert len(objects) == len(FAULTS) + 4
    assert objects.masked.sum() == 3  # the good one, the one that leaves the image, the crowd
    assert objects.ignored.sum() == 1
    assert data.train.has_masks
    assert not data.val.has_masks
    assert data.val.objects[0].masks is None
    assert repr(data.train).endswith("objects with masks>")
    report = check_detection(root)
    assert not report.sound
    assert (report.masks, len(report.without_mask)) == (2, len(FAULTS) + 5)
    assert len(report.to_dict()["bad"]) == len(FAULTS)
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", str(root)])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "masks of objects: 2" in printed
    assert f"bad: {len(FAULTS)}" in printed
    assert f"objects without a mask, in the images: {len(FAULTS) + 5}" in printed


def test_without_the_package_boxes_are_read_and_it_is_said(writers, tmp_path, monkeypatch):
    def with_masks(content):
        for one in content["annotations"]:
            x, y, width, height = one["bbox"]
            one["segmentation"] = [[x, y, x + width, y, x + width, y + height]]

    root = writers[0](tmp_path / "data", with_masks)
    whole = open_detection(root)
    assert "masks not read" not in whole.note
    assert whole.train.subset([1]).objects[0].masked.tolist() == [True]
    assert whole.train.objects[2].masks.runs == ()  # an image without an object
    monkeypatch.setattr("foveate.data.detection.masks._PACKAGE", "no_such_package")
    data = open_detection(root)
    assert "masks not read, which needs pip install 'foveate[detection]'" in data.note
    assert not data.train.has_masks
    assert data.train.objects[0].boxes.tolist() == whole.train.objects[0].boxes.tolist()
    assert data.fingerprint != whole.fingerprint
