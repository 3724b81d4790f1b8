"""Opening a data set for detection, whatever layout it has, under the same rules."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from foveate.data.detection.coco import find_coco, read_coco
from foveate.data.detection.masks import InstanceMasks, can_read_masks, parse_mask
from foveate.data.detection.record import Box, Found, Record
from foveate.data.detection.split import DetectionData, DetectionSplit, Objects
from foveate.data.detection.voc import is_voc, read_voc
from foveate.data.division import check_fraction, sample, stratified
from foveate.data.parts import check_apart
from foveate.data.segmentation.label_map import image_size
from foveate.errors import FoveateError, near

__all__ = ["find_detection", "open_detection"]

_ROUNDING = 1.0  # pixels by which a box may leave its image: it was rounded, and is cut off without a word
_BAD = ("stop", "skip")


def find_detection(source: object) -> bool:
    """Whether a path is a data set of images with boxes.

    Args:
        source: anything; what is not a path is not one.

    Returns:
        True where ``open_detection`` knows the layout.
    """
    if not isinstance(source, str | os.PathLike):
        return False
    return _layout(Path(source).expanduser().absolute()) is not None


def _layout(path: Path) -> Callable[[str | None], Found] | None:
    if path.is_dir() and is_voc(path):
        return lambda part: read_voc(path, part)
    files = find_coco(path) if path.exists() else []
    return (lambda part: read_coco(path, files, part)) if files else None


def open_detection(
    source: str | os.PathLike[str] | DetectionData,
    *,
    classes: Sequence[str] | None = None,
    val_part: str | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
) -> DetectionData:
    """Open a data set for detection. The first bytes of every image are read now, to compare its size with its boxes.

    Args:
        source: a :class:`DetectionData`, which comes back unchanged, or cut to ``limit``; or a folder in one of these
            layouts. COCO: ``annotations/instances_PART.json`` beside the images, ``PART/_annotations.coco.json`` in a
            folder for each part, one such file, or its path. Pascal VOC: ``Annotations/NAME.xml``,
            ``JPEGImages/NAME.jpg``, parts in ``ImageSets/Main``.
        classes: names of the classes, in the order of the scores. Without them the categories of a COCO file, or of
            Pascal VOC all names in the training annotations, in the order of the alphabet.
        val_part: the name of the part that is measured on; without it "val" or what is there in its place.
        val_fraction: part of the images that goes to validation, where the folder has no such part.
        seed: of that split and of ``limit``.
        limit: most images of each part.
        on_bad_image: ``stop`` at the first box without area, outside its image or of an unknown class, and at the first
            image that is missing, damaged, without its annotation or of another size than that says. ``skip`` cuts
            boxes off at the image's edge, leaves out the other boxes and those images, and lists all of them in
            :attr:`DetectionData.bad`. A mask of COCO's that has too few points, is of another size than the image,
            leaves it or has no pixel stops, too; with ``skip`` its object keeps its box and what can be used of the
            mask.

    Returns:
        The data set, with its parts and classes.

    Raises:
        FoveateError: there is no such folder, it has another layout, something in it is bad, or an argument is out of
            range.
    """
    check_fraction(val_fraction)
    if limit is not None and limit < 1:
        raise FoveateError(f"limit {limit}: must be at least 1")
    if on_bad_image not in _BAD:
        raise FoveateError(f"on_bad_image {on_bad_image!r}: {near(str(on_bad_image), _BAD)}")
    if isinstance(source, DetectionData):
        return source if limit is None else _limited(source, limit, seed)
    root = Path(source).expanduser().absolute()
    if not root.exists():
        raise FoveateError(f"no data at {root}: name a folder of images with boxes, or a COCO file")
    read = _layout(root)
    if read is None and root.suffix.lower() == ".json" and root.is_file():
        read = partial(read_coco, root, [root])  # which says what is wrong with it
    if read is None:
        raise FoveateError(
            f"{root} holds no images with boxes: name a folder with COCO's annotations (.json) or Pascal VOC's "
            "(JPEGImages/ beside Annotations/*.xml); open_data opens images with one class each"
        )
    found = read(val_part)
    bad = list(found.stray)
    names = _names(found, classes)
    train, val, how = _divided(found, val_fraction, seed)
    check_apart(*([record.image for record in records if record.image] for records in (train, val)))
    parts = [_split(part, records, names, bad) for part, records in (("train", train), ("val", val))]
    if bad and on_bad_image == "stop":
        more = f" (and {len(bad) - 1} more like it, which foveate data check lists)" if len(bad) > 1 else ""
        raise FoveateError(f"{bad[0][1]}{more}; on_bad_image='skip' cuts off at the edge and leaves out the rest")
    for split in parts:
        if not len(split):
            raise FoveateError(f"{root} has no {split.name} image that can be used: foveate data check says why")
    what = "boxes, masks or images" if any(split.has_masks for split in parts) else "boxes or images"
    left_out = f"{len(bad)} {what} cut off or left out" if bad else ""
    masked = any(box.segmentation for record in (*train, *val) for box in record.boxes)
    unread = "masks not read, which needs pip install 'foveate[detection]'" if masked and not can_read_masks() else ""
    data = DetectionData(
        name=root.resolve().stem if root.is_file() else root.resolve().name,
        classes=names,
        train=parts[0],
        val=parts[1],
        note="; ".join(filter(None, (f"layout: {found.layout}", how, left_out, unread))),
        bad=tuple(bad),
        unused=(("without an annotation of the same name", found.lonely),) if found.lonely else (),
    )
    return data if limit is None else _limited(data, limit, seed)


def _names(found: Found, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is not None:
        if isinstance(classes, str) or len(set(classes)) != len(classes) or not classes:
            raise FoveateError("classes: give a list of names, each once")
        return tuple(classes)
    names = found.names or tuple(sorted({box.label for record in found.train for box in record.boxes if box.label}))
    if not names:
        raise FoveateError("no training image has an object of any class: there is nothing to learn")
    return names


def _divided(found: Found, val_fraction: float, seed: int) -> tuple[Sequence[Record], Sequence[Record], str]:
    if found.val:
        return found.train, found.val, found.note
    if len(found.train) < 2:
        raise FoveateError("one image cannot be divided into training and validation images: add images")
    names = [record.name for record in found.train]
    first, second = stratified(names, [0] * len(names), val_fraction, seed)
    how = f"{len(second)} of {len(names)} images drawn for validation with seed {seed}"
    return [found.train[index] for index in first], [found.train[index] for index in second], how


def _split(
    name: str, records: Sequence[Record], classes: tuple[str, ...], bad: list[tuple[str, str]]
) -> DetectionSplit:
    """A part, without what is bad, which is written down."""
    positions = {label: position for position, label in enumerate(classes)}
    readable = can_read_masks()
    kept: list[tuple[str, str, tuple[int, int], Objects]] = []
    for record in records:
        try:
            path, size = _image(record)
        except FoveateError as error:
            bad.append((record.name, str(error)))
            continue
        boxes, labels, ignored, masks = [], [], [], []
        for box in record.boxes:
            place, reason = _place(record.name, box, size)
            if place is not None and box.label not in positions:
                place, reason = (
                    None,
                    f"{record.name}: an object is of the unknown class {box.label!r}; " + near(box.label, classes),
                )
            if reason:
                bad.append((record.name, reason))
            if place is not None:
                boxes.append(place)
                labels.append(positions[box.label])
                ignored.append(box.ignored)
                run, faults = parse_mask(box.segmentation, size, place) if readable else (None, ())
                masks.append(run)
                bad += [
                    (record.name, f"{record.name}: the mask of an object of {box.label!r} {fault}") for fault in faults
                ]
        objects = Objects(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int64),
            np.array(ignored, np.bool_),
            InstanceMasks(size, tuple(masks)),
        )
        kept.append((path, record.name, size, objects))
    images, names, sizes, found = zip(*kept, strict=True) if kept else ((), (), (), ())
    if not any(one.masked.any() for one in found):  # boxes alone
        found = tuple(replace(one, masks=None) for one in found)
    return DetectionSplit(name, images, names, sizes, found)


def _image(record: Record) -> tuple[str, tuple[int, int]]:
    """Its path and true size.

    Raises:
        FoveateError: it is missing, is not an image, has no annotation, or has another size than that says.
    """
    if record.problem:
        raise FoveateError(record.problem)
    if record.image is None:
        raise FoveateError(f"the image {record.name!r} leads out of the data set's folder: name files inside of it")
    if not record.image.is_file():
        raise FoveateError(f"the image {record.image} is missing")
    size = image_size(str(record.image))
    if record.size is not None and record.size != size:
        raise FoveateError(
            f"{record.image} is {size[1]}x{size[0]} pixels and its annotation says {record.size[1]}x{record.size[0]}: "
            "its boxes are of another image, or it was resized"
        )
    return str(record.image), size


def _place(name: str, box: Box, size: tuple[int, int]) -> tuple[tuple[float, ...] | None, str]:
    """The box within its image, or None; and what was wrong with it, or an empty text."""
    place = box.place
    if not isinstance(place, tuple) or not all(math.isfinite(side) for side in place):
        return None, f"{name}: the box of an object of {box.label!r} is {place!r}, not four numbers"
    left, top, right, bottom = place
    shown = f"{name}: the box {left:g}, {top:g}, {right:g}, {bottom:g} (left, top, right, bottom) of {box.label!r}"
    if right <= left or bottom <= top:
        return None, f"{shown} has no area"
    height, width = size
    inside = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, f"{shown} lies outside the image of {width}x{height} pixels"
    kept = np.array(inside, np.float32)  # as it is trained on
    if kept[2] <= kept[0] or kept[3] <= kept[1]:
        return None, f"{shown} has no area within the image of {width}x{height} pixels"
    beyond = max(abs(one - other) for one, other in zip(place, inside, strict=True))
    return inside, f"{shown} leaves the image of {width}x{height} pixels" if beyond > _ROUNDING else ""


def _limited(data: DetectionData, limit: int, seed: int) -> DetectionData:
    def cut(split: DetectionSplit) -> DetectionSplit:
        return split.subset(sorted(sample(split.names, [0] * len(split), limit, seed)))

    train, val = cut(data.train), cut(data.val)
    if len(train) == len(data.train) and len(val) == len(data.val):
        return data
    note = f"{data.note}; at most {limit} images of each part drawn with seed {seed}"
    return replace(data, train=train, val=val, note=note)
