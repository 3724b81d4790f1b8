"""Opening a data set for segmentation, whatever layout it has, under the same rules."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foveate.data.division import check_fraction, sample, stratified
from foveate.data.libraries import load_hugging_face, shown_name
from foveate.data.parts import check_apart
from foveate.data.segmentation.label_map import IGNORE, UNKNOWN, Source, image_size, read_values
from foveate.data.segmentation.layouts import Found, Pair, find_layout, not_classes
from foveate.data.segmentation.rows import HUB, find_rows
from foveate.data.segmentation.split import SegmentationData, SegmentationSplit
from foveate.errors import FoveateError

__all__ = ["find_segmentation", "open_segmentation"]


def find_segmentation(source: object) -> bool:
    """Whether a path is a folder of images beside label maps, or a table with a column of each.

    Args:
        source: anything; what is not a path or ``hf:NAME`` is not one.

    Returns:
        True where ``open_segmentation`` knows the layout.
    """
    return isinstance(source, str | os.PathLike) and _layout(source) is not None


def _layout(source: str | os.PathLike[str]) -> Callable[[str | None], Found] | None:
    if isinstance(source, str) and source.startswith(HUB):
        return find_rows(source)
    root = Path(source).expanduser().absolute()
    return (find_layout(root) if root.is_dir() else None) or find_rows(root)


def open_segmentation(
    source: str | os.PathLike[str] | SegmentationData,
    *,
    classes: Sequence[str] | None = None,
    ignore: Iterable[int] = (),
    val_part: str | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
) -> SegmentationData:
    """Open a data set for segmentation. A label map is compared in size with its image now, and read when it is used.

    Args:
        source: a folder in one of these layouts, or a :class:`SegmentationData`, which comes back unchanged, or cut to
            ``limit``. ``images/PART/NAME.jpg`` beside ``annotations/PART/NAME.png`` (also ``labels``, ``masks``, ...;
            parts called train, val, test, ..., or none of them), the numbers in the label maps named by
            ``dataset.json`` (``class_names``) or ``classes.txt`` (a name on each line, from 0 on); ADE20K as its
            authors give it out, 0 ignored; Pascal VOC, 255 ignored; Cityscapes, 19 of its classes. Or Parquet files, or
            ``hf:NAME`` (a data set of Hugging Face, or a folder that ``save_to_disk`` wrote), with a column of encoded
            images and one of label maps, called annotation, label, mask, ...; ``dataset.json``, ``classes.txt`` or
            ``id2label.json`` in the folder may name the numbers.
        classes: names for the numbers 0, 1, ... in the label maps, instead of those that the folder tells. Without
            either, every number that the training label maps hold is a class, and all of them are read now.
        ignore: more numbers that do not count; 255 never does, nor does a class that is called unlabelled, void or
            ignore.
        val_part: the name of the part that is measured on; without it "val" or what is there in its place.
        val_fraction: part of the images that goes to validation, where the folder has no such part.
        seed: of that split and of ``limit``.
        limit: most images of each part.

    Returns:
        The data set, with its parts and classes.

    Raises:
        FoveateError: the folder does not exist or has another layout, an image and its label map differ in size, a
            file is missing, or an argument is out of range.
    """
    check_fraction(val_fraction)
    if limit is not None and limit < 1:
        raise FoveateError(f"limit {limit}: must be at least 1")
    if isinstance(source, SegmentationData):
        return source if limit is None else _limited(source, limit, seed)
    by_name = isinstance(source, str) and source.startswith(HUB)
    root = Path(source) if by_name else Path(source).expanduser().absolute()
    if not by_name and not root.exists():
        raise FoveateError(f"no data at {root}: name a folder with images/ beside annotations/")
    read = _layout(source)
    if read is None and by_name:
        load_hugging_face(str(source).removeprefix(HUB))  # which says why it cannot be opened
        raise FoveateError(
            f"{source} has no column of images beside one of label maps (called annotation, label, mask, ...); "
            "open_data opens images with one class each"
        )
    if read is None:
        raise FoveateError(
            f"{root} holds no images beside label maps: name a folder with images/ beside annotations/ (PNG files with "
            "a number for each pixel), or ADE20K, Pascal VOC or Cityscapes; open_data opens images with one class each"
        )
    found = read(val_part)
    if not found.train:
        raise FoveateError(f"{root} holds no training image with a label map of the same name")
    names, note = _names(found, classes)
    ignored = {IGNORE, *found.ignore, *not_classes(names), *ignore}
    numbers = [number for number in sorted(names) if number not in ignored]
    if len(numbers) < 2:
        raise FoveateError(f"{root} has {len(numbers)} classes that count: segmentation needs at least 2")
    table = [UNKNOWN] * 256
    for number in ignored:
        if not 0 <= number <= 255:
            raise FoveateError(f"ignore: {number} is not a number of a label map, 0 to 255")
        table[number] = IGNORE
    for position, number in enumerate(numbers):
        table[number] = position
    train, val, how = _divided(found, val_fraction, seed)
    check_apart(*([image for _, image, _ in pairs if isinstance(image, Path)] for pairs in (train, val)))
    shown = ", ".join(map(str, sorted(ignored)[:6])) + ", ..." * (len(ignored) > 6)
    data = SegmentationData(
        name=shown_name(str(source).removeprefix(HUB))
        if by_name
        else root.resolve().stem
        if root.is_file()
        else root.resolve().name,
        classes=tuple(names[number] for number in numbers),
        train=_split("train", train, tuple(table)),
        val=_split("val", val, tuple(table)),
        licence=found.licence,
        note="; ".join(filter(None, (f"layout: {found.layout}", how, note, f"ignored numbers: {shown}"))),
        unused=(("without a partner of the same name", found.lonely),) if found.lonely else (),
    )
    return data if limit is None else _limited(data, limit, seed)


def _names(found: Found, classes: Sequence[str] | None) -> tuple[Mapping[int, str], str]:
    """The classes by number, and a text where nobody named them."""
    if classes is not None:
        if isinstance(classes, str) or len(classes) > IGNORE or not all(isinstance(name, str) for name in classes):
            raise FoveateError(f"classes: give a list of at most {IGNORE} names, each a text")
        return dict(enumerate(classes)), ""
    if found.names is not None:
        if any(number > IGNORE for number in found.names):
            raise FoveateError(f"{len(found.names)} class names: a label map tells {IGNORE} classes apart")
        return found.names, ""
    numbers = sorted({int(number) for name, _, path in found.train for number in set(_values(name, path).ravel())})
    return {number: str(number) for number in numbers}, "classes are the numbers in the training label maps"


def _values(name: str, source: Path | Source) -> npt.NDArray[np.uint8]:
    return read_values(str(source)) if isinstance(source, Path) else read_values(source, name)


def _divided(found: Found, val_fraction: float, seed: int) -> tuple[Sequence[Pair], Sequence[Pair], str]:
    if found.val:
        return found.train, found.val, found.note
    if len(found.train) < 2:
        raise FoveateError("one image cannot be divided into training and validation images: add images")
    names = [name for name, _, _ in found.train]
    first, second = stratified(names, [0] * len(names), val_fraction, seed)
    how = f"{len(second)} of {len(names)} images drawn for validation with seed {seed}"
    return [found.train[index] for index in first], [found.train[index] for index in second], how


def _split(name: str, pairs: Sequence[Pair], table: tuple[int, ...]) -> SegmentationSplit:
    sizes, sources = [], []
    for called, *pair in pairs:
        own = []
        for source, kind in zip(pair, ("image", "label map"), strict=True):
            if isinstance(source, Path) and not source.is_file():
                raise FoveateError(f"the {kind} {source} is missing")
            own.append(str(source) if isinstance(source, Path) else source)
        sources.append(own)
        shown = [one if isinstance(one, str) else called for one in own]
        size, other = (image_size(one, text) for one, text in zip(own, shown, strict=True))
        if size != other:
            raise FoveateError(
                f"the label map {shown[1]} is {other[1]}x{other[0]} pixels and its image {size[1]}x{size[0]}: make it "
                "anew for this image"
            )
        sizes.append(size)
    images, maps = zip(*sources, strict=True)
    return SegmentationSplit(name, images, maps, tuple(called for called, *_ in pairs), tuple(sizes), table)


def _limited(data: SegmentationData, limit: int, seed: int) -> SegmentationData:
    def cut(split: SegmentationSplit) -> SegmentationSplit:
        return split.subset(sorted(sample(split.names, [0] * len(split), limit, seed)))

    train, val = cut(data.train), cut(data.val)
    if len(train) == len(data.train) and len(val) == len(data.val):
        return data
    note = f"{data.note}; at most {limit} images of each part drawn with seed {seed}"
    return replace(data, train=train, val=val, note=note)
