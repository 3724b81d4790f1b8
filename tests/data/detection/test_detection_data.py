"""Both layouts give the same data; each fault that was put in is named, counted and left out."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from foveate.data.detection import check_detection, find_detection, open_detection
from foveate.data.segmentation import find_segmentation
from foveate.errors import FoveateError


def rows(split):
    return [
        (name.rpartition("/")[2], objects.boxes.tolist(), [split.classes[n] for n in objects.labels])
        for name, objects in zip(split.names, split.objects, strict=True)
    ]


WANTED = [
    ("0.png", [[1, 2, 11, 12], [20, 5, 40, 25]], ["cat", "dog"]),
    ("1.png", [[3.5, 4, 9, 30]], ["dog"]),
    ("2.png", [], []),
]


def test_layouts_are_told_apart_and_give_the_same(writers, tmp_path):
    write_coco, write_voc, _ = writers
    found = {
        "coco": open_detection(write_coco(tmp_path / "coco")),
        "voc": open_detection(str(write_voc(tmp_path / "voc"))),
    }
    for data in found.values():
        assert data.classes == ("cat", "dog")
        assert rows(data.train) == WANTED
        assert [row[1:] for row in rows(data.val)] == [WANTED[0][1:]]
        assert data.train.counts() == [1, 2]
        assert data.bad == data.unused == ()
        image, objects = data.train[0]
        assert image.size == (40, 30)
        assert objects.boxes.dtype == np.float32
    assert "layout: COCO; split as the files instances_train2017.json" in found["coco"].note
    assert "split as ImageSets/Main has it, train and val" in found["voc"].note
    assert found["coco"].fingerprint != found["voc"].fingerprint
    assert found["coco"].fingerprint == open_detection(tmp_path / "coco").fingerprint

    for part, other in (("train2017", "train"), ("val2017", "valid")):  # a folder for each part
        shutil.copytree(tmp_path / "coco" / part, tmp_path / "parts" / other)
        source = tmp_path / f"coco/annotations/instances_{part}.json"
        shutil.copy(source, tmp_path / "parts" / other / "_annotations.coco.json")
    assert rows(open_detection(tmp_path / "parts").train) == WANTED
    assert "split as the folders train/ and valid/" in open_detection(tmp_path / "parts").note

    alone = tmp_path / "coco/annotations/instances_train2017.json"  # one file: a part is drawn
    drawn = open_detection(alone, seed=3)
    assert (len(drawn.train), len(drawn.val)) == (2, 1)
    assert sorted(rows(drawn.train) + rows(drawn.val)) == WANTED
    assert open_detection(alone, seed=3).train.names == drawn.train.names
    assert open_detection(drawn) is drawn
    assert len(open_detection(found["voc"], limit=2).train) == 2
    shutil.rmtree(tmp_path / "voc/ImageSets")
    assert "1 of 4 images drawn for validation" in open_detection(tmp_path / "voc").note
    swapped = open_detection(tmp_path / "coco", classes=["dog", "cat"])
    assert [swapped.classes[n] for n in swapped.train.objects[0].labels] == ["cat", "dog"]


def test_other_data_are_not_for_detection(writers, tmp_path):
    for place in (tmp_path, tmp_path / "nothing", 3, None):
        assert not find_detection(place)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "notes.json").write_text('{"images": 1, "annotations": 2}')
    (tmp_path / "dataset.json").write_text('{"class_names": ["a"], "images": 3}')
    assert not find_detection(tmp_path)
    assert not find_segmentation(writers[1](tmp_path / "voc"))
    assert find_detection(tmp_path / "voc")
    with pytest.raises(FoveateError, match=r"holds no images with boxes: name a folder with COCO"):
        open_detection(tmp_path)
    with pytest.raises(FoveateError, match="no data at"):
        open_detection(tmp_path / "nothing")
    for arguments, word in (
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"limit": 0}, "limit"),
        ({"on_bad_image": "sikp"}, "'skip'"),
        ({"val_part": "vall"}, "val"),
        ({"classes": "cat"}, "list of names"),
    ):
        with pytest.raises(FoveateError, match=word):
            open_detection(tmp_path / "voc", **arguments)


def test_every_fault_of_coco_is_named_and_left_out(writers, tmp_path):
    def spoil(content):
        entry = {"image_id": 1, "category_id": 7, "iscrowd": 0}
        faulty = {
            "no area": {"bbox": [5, 5, 0, 4]},
            "lies outside the image of 40x30": {"bbox": [50, 5, 4, 4]},
            "leaves the image of 40x30": {"bbox": [30, 5, 30, 10]},
            "unknown class 'number 8'": {"bbox": [1, 1, 5, 5], "category_id": 8},
            "not four numbers": {"bbox": [1, 1, 5]},
            "is of image 99": {"bbox": [1, 1, 5, 5], "image_id": 99},
            "three.png is missing": None,
            "leads out of the data set's folder": None,
            "is 40x30 pixels and its annotation says 41x30": None,
            "is not an image": None,
        }
        content["annotations"] += [{"id": 50 + n, **entry, **box} for n, box in enumerate(faulty.values()) if box]
        content["annotations"].append({"id": 80, **entry, "bbox": [0, 0, 40.5, 30.4]})  # rounded
        content["annotations"].append({"id": 81, **entry, "bbox": [0, 0, 9, 9], "iscrowd": 1})
        for number, name in ((3, "three.png"), (4, "../0.png"), (5, "wide.png"), (6, "text.png")):
            content["images"].append({"id": number, "file_name": name, "width": 40 + (number == 5), "height": 30})
        spoil.faults = faulty

    root = writers[0](tmp_path / "data", spoil)
    shutil.copy(root / "train2017/0.png", root / "train2017/wide.png")
    (root / "train2017/text.png").write_text("text")
    with pytest.raises(FoveateError, match=r"is of image 99.*\(and 9 more like it.*on_bad_image='skip'"):
        open_detection(root)
    data = open_detection(root, on_bad_image="skip")
    assert len(data.bad) == len(spoil.faults)
    for words in spoil.faults:
        assert sum(words in reason for _, reason in data.bad) == 1, words
    assert data.train.names == ("0.png", "1.png", "2.png")
    assert data.train.objects[1].boxes.tolist() == [[3.5, 4, 9, 30], [30, 5, 40, 15], [0, 0, 40, 30], [0, 0, 9, 9]]
    assert data.train.objects[1].ignored.tolist() == [False, False, False, True]
    assert "10 boxes or images cut off or left out" in data.note
    report = check_detection(root)
    assert not report.sound
    assert report.objects == (("cat", 3, 1), ("dog", 2, 1))
    assert (report.ignored, report.empty) == (1, ("2.png",))
    assert report.to_dict()["bad"][0]["reason"] in report._repr_html_().replace("&#39;", "'")


def test_every_fault_of_voc_is_named_and_left_out(writers, tmp_path):
    _, write_voc, xml = writers
    root = write_voc(tmp_path / "data")
    names = {
        "gone": "gone.xml is missing",
        "broken": "broken.xml cannot be read",
        "entities": "declares a document type",
        "wide": "40x30 pixels and its annotation says 80x30",
        "lost": "lost.jpg is missing",
        "../0": "leads out of the data set's folder",
        "nobox": "not four numbers",
    }
    bomb = '<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;&x;">]>'
    (root / "Annotations/broken.xml").write_text("<annotation><object>")
    (root / "Annotations/entities.xml").write_text(xml("0", boxes=[("&y;", (1, 1, 5, 5))], more=bomb))
    (root / "Annotations/wide.xml").write_text(xml("0", width=80))
    (root / "Annotations/lost.xml").write_text(xml("0"))
    (root / "Annotations/nobox.xml").write_text(
        xml("0", width="nan", boxes=[("cat", ("a", 1, 5, 5)), ("hard", (1, 1, 5, 5))])
    )
    for name in ("gone", "broken", "entities", "wide", "nobox"):
        Image.new("RGB", (40, 30)).save(root / f"JPEGImages/{name}.png")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(["0", *names]))
    data = open_detection(root, on_bad_image="skip")
    assert [reason for _, reason in data.bad if "unknown" in reason] == []
    assert len(data.bad) == len(names)
    for words in names.values():
        assert sum(words in reason for _, reason in data.bad) == 1, words
    assert data.train.objects[1].ignored.tolist() == [True]
    assert data.classes == ("cat", "dog", "hard")
    (root / "ImageSets/Main/train.txt").write_text("0\n")
    assert open_detection(root).bad == ()
    (root / "ImageSets/Main/val.txt").write_text("nobox\n")
    with pytest.raises(FoveateError, match="the unknown class 'hard'|not four numbers"):
        open_detection(root)
    (root / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(FoveateError, match=r"val\.txt is missing"):
        open_detection(root)


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"images": [], "annotations": {}, "categories": []}', "'annotations' must be a list"),
        ('{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "one id"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            "category",
        ),
        ('{"images": [], "annotations": [', "cannot be read|can be read"),
        ('{"images":' + "[" * 100_000 + '"annotations"', "can be read"),
    ],
)
def test_a_file_that_is_not_cocos_is_refused(content, words, tmp_path):
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(FoveateError, match=words):
        open_detection(tmp_path / "boxes.json")


def test_parts_need_the_same_categories(writers, tmp_path):
    root = writers[0](tmp_path / "data", lambda content: content["categories"].reverse())
    assert open_detection(root).classes == ("cat", "dog")  # by number, in whatever order they stand
    file = root / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "cow"
    file.write_text(json.dumps(content))
    with pytest.raises(FoveateError, match="list other categories"):
        open_detection(root)


def test_an_image_that_changes_after_opening_is_named(writers, tmp_path):
    data = open_detection(writers[1](tmp_path / "data"))
    Image.new("RGB", (41, 30)).save(tmp_path / "data/JPEGImages/0.png")
    with pytest.raises(FoveateError, match=r"0\.png is 41x30 pixels and was 40x30"):
        data.train.load(0)
    writers[1](tmp_path / "more")
    (tmp_path / "more/JPEGImages/1.png").write_bytes((tmp_path / "more/JPEGImages/1.png").read_bytes()[:60])
    assert any("1.png" in reason for _, reason in check_detection(tmp_path / "more").bad)
