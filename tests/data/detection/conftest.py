"""One small data set in the layouts of COCO and Pascal VOC."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

SIZE = (40, 30)  # width, height
BOXES = {"0": [("cat", (1, 2, 11, 12)), ("dog", (20, 5, 40, 25))], "1": [("dog", (3.5, 4, 9, 30))], "2": []}


def write_images(folder: Path, names=BOXES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", SIZE, (90, 120, 60)).save(folder / f"{name}.png")


def coco(names=BOXES, categories=("cat", "dog")) -> dict:
    """Category numbers 7, 9, ...; images are called by whole numbers."""
    numbers = {label: 7 + 2 * n for n, label in enumerate(categories)}
    boxes = [(int(name), label, box) for name in names for label, box in BOXES[name]]
    return {
        "images": [{"id": int(n), "file_name": f"{n}.png", "width": SIZE[0], "height": SIZE[1]} for n in names],
        "annotations": [
            {"id": n, "image_id": image, "category_id": numbers[label], "bbox": [x, y, r - x, b - y], "iscrowd": 0}
            for n, (image, label, (x, y, r, b)) in enumerate(boxes)
        ],
        "categories": [{"id": number, "name": label} for label, number in numbers.items()],
    }


def write_coco(root: Path, change=lambda content: None) -> Path:
    """``annotations/instances_train2017.json`` with all, ``..._val2017.json`` with one."""
    (root / "annotations").mkdir(parents=True)
    for part, names in (("train2017", list(BOXES)), ("val2017", ["0"])):
        write_images(root / part, names)
        content = coco(names)
        if part == "train2017":
            change(content)
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    return root


def xml(name: str, width: object = SIZE[0], boxes=None, more: str = "") -> str:
    objects = "".join(
        f"<object><name>{label}</name><difficult>{int(label == 'hard')}</difficult>"
        f"<part><bndbox><xmin>0</xmin></bndbox></part><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{r}</xmax><ymax>{b}</ymax></bndbox></object>"
        for label, (x, y, r, b) in (BOXES[name] if boxes is None else boxes)
    )
    size = f"<size><width>{width}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    return f"{more}<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"


def write_voc(root: Path, *, parts: bool = True) -> Path:
    """With parts the image of validation, 3, has the boxes of 0."""
    write_images(root / "JPEGImages", [*BOXES, *(["3"] * parts)])
    (root / "Annotations").mkdir()
    for name in BOXES:
        (root / f"Annotations/{name}.xml").write_text(xml(name))
    if parts:
        (root / "Annotations/3.xml").write_text(xml("0"))
        (root / "ImageSets/Main").mkdir(parents=True)
        (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n")
        (root / "ImageSets/Main/val.txt").write_text("3 1\n")
    return root


@pytest.fixture
def writers():
    return write_coco, write_voc, xml
