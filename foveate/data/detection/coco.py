"""COCO's JSON: images, annotations with boxes [x, y, width, height] and masks, and categories, a file for each part.

Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.data.detection.record import Box, Found, Record
from foveate.data.parts import part_of, parts_of
from foveate.errors import FoveateError, near

__all__ = ["find_coco", "read_coco"]

_CHUNK = 1 << 20  # bytes of the beginning and of the end that are looked at
_MAY_HOLD = ("", "annotations", "annotation")
_LESS_THAN_A_BOX = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")  # COCO's other files


def find_coco(path: Path) -> list[Path]:
    """The COCO files that a path means: itself, those in a folder or its ``annotations``, or one in each part's folder.

    They are known by what stands in their first and last bytes; none is read as a whole.
    """
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and _looks_so(path) else []
    candidates = [file for name in _MAY_HOLD if (path / name).is_dir() for file in sorted((path / name).glob("*.json"))]
    candidates = [file for file in candidates if not file.name.startswith(_LESS_THAN_A_BOX)]
    found = [file for file in dict.fromkeys(candidates) if _looks_so(file)]
    if found or not path.is_dir():
        return found
    parts = [entry for entry in sorted(path.iterdir()) if part_of(entry.name, alone=True) and entry.is_dir()]
    return [file for folder in parts for file in sorted(folder.glob("*.json")) if _looks_so(file)]


def _looks_so(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(_CHUNK)
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _CHUNK))
            text = start + file.read(_CHUNK)
    except OSError:
        return False
    # Without boxes it may be a data set of another kind, such as iNaturalist's classes.
    others = (b'"images"', b'"annotations"', b'"categories"')
    return start.lstrip().startswith(b"{") and b'"bbox"' in text and any(key in text for key in others)


def read_coco(root: Path, files: Sequence[Path], wanted: str | None) -> Found:
    """Read the files, of several the one of training and one of the others.

    Args:
        root: the data set's folder.
        files: of ``find_coco``.
        wanted: the part to be measured on; None: "val", or what is there in its place.

    Raises:
        FoveateError: a file is damaged or lists no images or categories, the parts have other classes, or there is no
            part of that name.
    """
    if len(files) == 1:
        records, names, stray = _read(root, files[0])
        return Found("COCO", records, (), names, "", stray=stray)
    parts = parts_of({_part_name(file): file for file in files}, alone=False)
    if "train" not in parts:
        names_there = ", ".join(file.name for file in files)
        raise FoveateError(f"{root} has {names_there}, and none is called train: name the .json file that is meant")
    others = {part: found[0] for part, found in parts.items() if part != "train"}
    if wanted is not None and wanted not in others:
        raise FoveateError(f"{root} has no part {wanted!r}; {near(wanted, others)}")
    train, names, stray = _read(root, parts["train"][0])
    if not others:
        return Found("COCO", train, (), names, "", stray=stray)
    part = wanted or next(iter(others))
    val, other_names, more = _read(root, others[part])
    if other_names != names:
        raise FoveateError(
            f"{parts['train'][0]} and {others[part]} list other categories: both need the same, with the same numbers"
        )
    note = f"split as the files {parts['train'][0].name} and {others[part].name}"
    if parts["train"][0].name == others[part].name:
        note = f"split as the folders {parts['train'][0].parent.name}/ and {others[part].parent.name}/"
    return Found("COCO", train, val, names, note, stray=(*stray, *more))


def _part_name(file: Path) -> str:
    return file.stem if part_of(file.stem, alone=False) else file.parent.name


def _content(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FoveateError(f"{path} is not a JSON file that can be read: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise FoveateError(f"{path} is not a COCO file: it holds no images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        rows = content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise FoveateError(f"{path} is not a COCO file: {key!r} must be a list of objects")
    return content


def _read(root: Path, path: Path) -> tuple[list[Record], tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Its images, the classes in the order of their numbers, and annotations of no image."""
    content = _content(path)
    names = _categories(path, content["categories"])
    boxes: dict[object, list[Box]] = defaultdict(list)
    listed = {_key(row.get("id")) for row in content["images"]}
    if len(listed) != len(content["images"]):
        raise FoveateError(f"{path} lists two images with one id, or one without: each needs an id of its own")
    stray = []
    for row in content["annotations"]:
        image = _key(row.get("image_id"))
        if image not in listed:
            stray.append((f"annotation {row.get('id')}", f"{path}: it is of image {image!r}, which is not listed"))
            continue
        number = row.get("category_id")
        label = names.get(number) if isinstance(number, int) else None
        crowd = row.get("iscrowd") in (1, True)
        label = label if label is not None else f"number {number!r}"
        boxes[image].append(Box(label, _corners(row.get("bbox")), crowd, row.get("segmentation")))
    base = _base(root, path, [row.get("file_name") for row in content["images"]])
    records = []
    for row in content["images"]:
        name, inside = str(row.get("file_name")), _inside(row.get("file_name"), _folder(root))
        size = (row.get("height"), row.get("width"))
        stated = size if all(type(side) is int and side > 0 for side in size) else None
        place = base / name if inside else None
        records.append(Record(name, place, stated, tuple(boxes[_key(row.get("id"))])))  # type: ignore[arg-type]  # two whole numbers, as was checked
    return records, tuple(names.values()), tuple(stray)


def _key(number: object) -> object:
    return number if isinstance(number, int | str) else None


def _categories(path: Path, rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Names by number, in the order of the numbers."""
    names = {row["id"]: str(row.get("name")) for row in rows if type(row.get("id")) is int}
    if len(names) != len(rows) or len(set(names.values())) != len(rows) or not rows:
        raise FoveateError(f"{path}: each category needs a whole number as id and a name, both of its own")
    return {number: names[number] for number in sorted(names)}


def _corners(box: object) -> object:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(part, int | float) for part in box):
        return box
    try:
        x, y, width, height = map(float, box)
    except OverflowError:  # a whole number that is no float
        return box
    return x, y, x + width, y + height


def _inside(name: object, folder: Path) -> bool:
    """Whether a file's name stays in a folder."""
    if not isinstance(name, str) or not name or "\0" in name or ".." in name.replace("\\", "/").split("/"):
        return False
    return not Path(name).is_absolute() or Path(name).is_relative_to(folder)


def _folder(root: Path) -> Path:
    """The data set's: of a file alone the one that it lies in, or the one above its annotations."""
    if root.is_dir():
        return root
    return root.parent.parent if root.parent.name in _MAY_HOLD else root.parent


def _base(root: Path, path: Path, names: Sequence[object]) -> Path:
    """The folder that the names of a file are relative to: the first in which one of the first images lies."""
    folder = _folder(root)
    usual = [folder, folder / "images", folder / "JPEGImages", path.parent, path.parent / "images"]
    words = path.stem.split("_")[-1]  # instances_train2017 -> train2017
    part = part_of(_part_name(path), alone=False)
    for name in filter(None, (words, path.stem, part)):
        usual += [folder / name, folder / "images" / name]
    first = [name for name in names[:100] if _inside(name, folder)]
    for base in usual:
        if any((base / str(name)).is_file() for name in first):
            return base
    return usual[1] if usual[1].is_dir() else path.parent
