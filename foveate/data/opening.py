"""Opening a data set, whatever form it is in, under the same rules."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from foveate.data.check import damaged, unusable
from foveate.data.detection import DetectionData, DetectionSplit, find_detection
from foveate.data.division import check_fraction, sample
from foveate.data.elpv import read_elpv
from foveate.data.folder import read_folder
from foveate.data.libraries import read_hugging_face, read_torchvision
from foveate.data.official import find_official, read_official
from foveate.data.parquet import is_parquet, read_parquet
from foveate.data.parts import PartChoice
from foveate.data.shards import is_shards, read_shards
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError, near

__all__ = ["is_by_name", "open_data", "open_unchecked"]

_LIBRARIES = {"hf": read_hugging_face, "torchvision": read_torchvision}


def open_data(
    source: str | os.PathLike[str] | ImageData,
    *,
    seed: int = 0,
    val_fraction: float = 0.2,
    on_bad_image: Literal["stop", "skip"] = "stop",
    allow_empty: bool = False,
    limit: int | None = None,
    min_classes: int = 2,
    parts: str | None = None,
) -> ImageData:
    """Open a data set for classification.

    Args:
        source: a folder with ``train/`` and ``val/`` (or ``validation``, ``dev``, ``eval``, ``test``, ``images_val``,
            ...), each with a folder per class; a folder with a folder per class; CUB-200-2011, Stanford Dogs, Food-101,
            Flowers-102, Oxford-IIIT Pets or FGVC-Aircraft as their authors give them out, with their split; a folder
            with ``train.parquet`` and ``test.parquet`` (or several files of each, also in ``data/``), or one
            ``.parquet`` file; tar files as WebDataset lays them out; the word ``elpv`` for the packaged solar cells (a
            folder of that name is ``./elpv``); ``hf:NAME`` or ``torchvision:NAME`` for another library's; or an
            :class:`ImageData`, which comes back unchanged, or cut to ``limit``.
        seed: of the split, where the source has none, and of ``limit``. The same seed gives the same images on every
            machine.
        val_fraction: part of each class (for ``elpv``: of the blocks) that goes to validation, where the source has no
            split of its own.
        on_bad_image: ``stop`` looks at every image's first bytes now and raises if one is empty or not an image;
            damage deeper inside is raised when the image is loaded. ``skip`` decodes every image now and leaves the
            bad ones out, listed in :attr:`ImageData.bad`.
        allow_empty: whether a class may have no training image. It keeps its place among the classes.
        limit: most images of each part, drawn with ``seed`` in proportion to the classes; applied before bad images
            are looked for.
        min_classes: a folder with fewer class folders is refused. 1 is for a folder of one class that a trained
            classifier is evaluated on.
        parts: which parts of Parquet files, of class folders or of an official layout are used, where there are
            more than two: "train+val:test" trains on the first two together and measures accuracy on the last.

    Returns:
        The data set.

    Raises:
        FoveateError: the source does not exist or is in none of these forms, a class is empty, an image is bad, or an
            argument is out of range.
    """
    if on_bad_image not in ("stop", "skip"):
        raise FoveateError(f"on_bad_image {on_bad_image!r}: {near(on_bad_image, ('stop', 'skip'))}")
    check_fraction(val_fraction)
    for name, value in (("limit", limit), ("min_classes", min_classes)):
        if value is not None and value < 1:
            raise FoveateError(f"{name} {value}: must be at least 1")
    choice = PartChoice.parse(parts) if parts is not None else None
    if isinstance(source, ImageData):
        if choice:
            raise FoveateError(f"parts={parts!r}: the data are open already; give their path, to choose parts")
        return source if limit is None else _limited(source, limit, seed)
    data = _read(source, seed, val_fraction, min_classes, choice)
    if not data.train.labels:
        raise FoveateError(f"{source} holds no image in its class folders: name a folder of images")
    if not data.val.labels:
        raise FoveateError(f"{source} has no validation image: add some, or leave the validation part out for a split")
    _require_every_class(data, allow_empty)
    if limit is not None:
        data = _limited(data, limit, seed)
    return _without_bad(data, on_bad_image, allow_empty)


def open_unchecked(source: str | os.PathLike[str], seed: int, val_fraction: float) -> ImageData:
    """Open a data set without a look at its images: empty classes and bad images stay in it.

    Raises:
        FoveateError: the source does not exist or is in no known form, or the fraction is none.
    """
    check_fraction(val_fraction)
    return _read(source, seed, val_fraction)


def is_by_name(source: object) -> bool:
    """Whether data is named, and no path, whatever files are called: ``elpv``, ``hf:NAME``, ``torchvision:NAME``."""
    return source == "elpv" or (isinstance(source, str) and source.partition(":")[0] in _LIBRARIES)


def _read(
    source: str | os.PathLike[str],
    seed: int,
    val_fraction: float,
    min_classes: int = 2,
    choice: PartChoice | None = None,
) -> ImageData:
    if choice and is_by_name(source):
        raise FoveateError(f"parts={str(choice)!r}: the parts of {source} cannot be chosen; leave parts out")
    if source == "elpv":
        return read_elpv(seed, val_fraction)
    if isinstance(source, DetectionData | DetectionSplit):
        raise FoveateError(f"{source.name!r} are images with boxes, and images with one class each are wanted here")
    if not isinstance(source, str | os.PathLike):
        raise FoveateError(f"data is a folder, a .parquet file or 'elpv', not {type(source).__name__}")
    kind, _, name = str(source).partition(":")
    if name and kind in _LIBRARIES:
        return _LIBRARIES[kind](name, seed, val_fraction)
    # Absolute, so that workers and later calls find the images from any working directory.
    path = Path(source).expanduser().absolute()
    if not path.exists():
        above = next(parent for parent in path.parents if parent.is_dir())
        there = sorted(entry.name for entry in above.iterdir() if not entry.name.startswith("."))
        asked = path.relative_to(above).parts[0]
        raise FoveateError(
            f"no data at {path}: {near(asked, [*there, 'elpv'])} (in {above}; elpv is a packaged data set, hf:NAME and "
            "torchvision:NAME are other libraries')"
        )
    try:
        return _read_path(path, seed, val_fraction, min_classes, choice)
    except PermissionError as error:
        raise FoveateError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _read_path(path: Path, seed: int, val_fraction: float, min_classes: int, choice: PartChoice | None) -> ImageData:
    """Read a folder or a file by what it holds."""
    if is_parquet(path):
        return read_parquet(path, seed, val_fraction, choice)
    if is_shards(path):
        if choice:
            raise FoveateError(f"parts={str(choice)!r}: the parts of tar files cannot be chosen; leave parts out")
        return read_shards(path, seed, val_fraction)
    if not path.is_dir():
        raise FoveateError(f"{path} is a file: data is a folder of class folders, a .parquet or .tar file, or 'elpv'")
    if find_detection(path):
        raise FoveateError(
            f"{path} holds images with boxes, and images with one class each are wanted here; open_detection opens it, "
            "for fit, evaluate and check_detection"
        )
    official = find_official(path)
    return read_official(*official, choice) if official else read_folder(path, seed, val_fraction, min_classes, choice)


def _require_every_class(data: ImageData, allow_empty: bool, left: str = "") -> None:
    present = set(data.train.labels)
    empty = [name for label, name in enumerate(data.classes) if label not in present]
    if empty and not allow_empty:
        what = f"class {empty[0]!r} has" if len(empty) == 1 else f"classes {', '.join(map(repr, empty[:8]))} have"
        raise FoveateError(
            f"{data.name}: {what} no training image{left}: add images, remove the class, or pass allow_empty=True"
        )


def _limited(data: ImageData, limit: int, seed: int) -> ImageData:
    present = len(set(data.train.labels))
    if limit < min(present, len(data.train)):
        raise FoveateError(f"limit {limit}: {data.name} has {present} classes, each needs at least one training image")
    train, val = (split.subset(sample(split.names, split.labels, limit, seed)) for split in (data.train, data.val))
    if len(train) == len(data.train) and len(val) == len(data.val):
        return data
    note = f"{data.note}; at most {limit} images of each part drawn with seed {seed}"
    return replace(data, train=train, val=val, note=note)


def _without_bad(data: ImageData, on_bad_image: str, allow_empty: bool) -> ImageData:
    find = damaged if on_bad_image == "skip" else unusable
    bad = {split.name: find(split) for split in (data.train, data.val)}
    reasons = [reason for found in bad.values() for reason in found.values()]
    if not reasons:
        return data
    if on_bad_image == "stop":
        more = f" (and {len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
        raise FoveateError(f"{reasons[0]}{more}; on_bad_image='skip' leaves bad images out")
    left_out = [split.names[index] for split in (data.train, data.val) for index in bad[split.name]]
    data = replace(
        data,
        train=_without(data.train, bad["train"]),
        val=_without(data.val, bad["val"]),
        bad=tuple(left_out),
        note=f"{data.note}; left out {len(left_out)} image{'s' * (len(left_out) > 1)} that cannot be read",
    )
    if not data.val.labels:
        raise FoveateError(f"{data.name}: no validation image can be read, for example {reasons[-1]}")
    _require_every_class(data, allow_empty, " after those that cannot be read were left out")
    return data


def _without(split: Split, bad: dict[int, str]) -> Split:
    return split.subset([index for index in range(len(split)) if index not in bad]) if bad else split
