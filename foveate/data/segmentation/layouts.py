"""How data sets for segmentation lie in folders: which files belong together, and what the numbers stand for.

ADE20K: Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017. Pascal VOC: Everingham et al., The Pascal Visual
Object Classes Challenge, IJCV 2010. Cityscapes: Cordts et al., The Cityscapes Dataset, CVPR 2016.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveate.data.parts import lines_of_names, parts_of
from foveate.data.segmentation.label_map import IGNORE, MAP_SUFFIXES, Source
from foveate.errors import FoveateError, near
from foveate.image_files import images_by_name, walk_images

__all__ = ["Found", "Pair", "described", "find_layout", "not_classes"]

Pair = tuple[str, Path | Source, Path | Source]
"""Name, image, label map."""

_PICTURES = ("images", "image", "imgs", "img", "photos", "jpegimages")
_TARGETS = ("annotations", "annotation", "annots", "annot", "labels", "label", "masks", "mask", "segmentation", "gt")
_NOT_CLASSES = ("unlabelled", "unlabeled", "void", "ignore", "ignored")
_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
_OF_CITYSCAPES = 34  # numbers in its label maps


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        layout: whose it is, as text.
        train: pairs to learn from.
        val: pairs to be measured on; () where the folder has no such part.
        names: of the classes by the number in the label maps; None where nothing names them.
        ignore: numbers that never count in this layout, whatever they are called.
        note: how the parts were made.
        licence: terms of use, or None.
        lonely: names of images without a label map, and of label maps without an image.
    """

    layout: str
    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    names: Mapping[int, str] | None
    ignore: frozenset[int] = frozenset()
    note: str = ""
    licence: str | None = None
    lonely: tuple[str, ...] = field(default=(), repr=False)


def find_layout(root: Path) -> Callable[[str | None], Found] | None:
    """How to read a folder, or None where it holds no images beside label maps.

    Returns:
        Takes the name of the part to measure on, or None for the usual one.
    """
    if (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir():
        return lambda part: _voc(root, part)
    if (root / "leftImg8bit").is_dir() and ((root / "gtFine").is_dir() or (root / "gtCoarse").is_dir()):
        return lambda part: _cityscapes(root, part)
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    pictures = [folders[name] for name in _PICTURES if name in folders]
    targets = [folders[name] for name in _TARGETS if name in folders and _holds_maps(folders[name])]
    if not pictures or not targets:
        return None
    return lambda part: _plain(root, pictures[0], targets[0], part)


def _holds_maps(folder: Path) -> bool:
    return next(walk_images(folder, MAP_SUFFIXES), None) is not None


def _pairs(pictures: Path, targets: Path, lonely: list[str]) -> tuple[Pair, ...]:
    """Images and label maps that are called alike, in the order of their names."""
    images, maps = images_by_name(pictures), images_by_name(targets, MAP_SUFFIXES)
    lonely += [f"{pictures.name}/{name}" for name in images if name not in maps]
    lonely += [f"{targets.name}/{name}" for name in maps if name not in images]
    return tuple((f"{pictures.name}/{name}", images[name], maps[name]) for name in images if name in maps)


def _chosen(root: Path, parts: Mapping[str, list[Path]], wanted: str | None) -> tuple[Path, Path | None]:
    """The folders to learn from and to be measured on."""
    if not parts.get("train"):
        there = ", ".join(path.name for found in parts.values() for path in found)
        raise FoveateError(f"{root} has {there or 'no parts'} and no train folder: add it, or remove the others")
    others = {path.name: path for part, found in parts.items() if part != "train" for path in found}
    if wanted is not None and wanted not in others:
        raise FoveateError(f"{root} has no part {wanted!r}; {near(wanted, others)}")
    return parts["train"][0], others[wanted] if wanted else next(iter(others.values()), None)


def _plain(root: Path, pictures: Path, targets: Path, wanted: str | None) -> Found:
    """``images/PART/NAME.jpg`` beside ``annotations/PART/NAME.png``, or both without parts."""
    lonely: list[str] = []
    parts = parts_of({path.name: path for path in sorted(pictures.iterdir()) if path.is_dir()}, alone=True)
    note = ""
    val: tuple[Pair, ...] = ()
    if parts:
        train_folder, val_folder = _chosen(pictures, parts, wanted)
        for folder in filter(None, (train_folder, val_folder)):
            if not (targets / folder.name).is_dir():
                raise FoveateError(f"{pictures / folder.name} has no label maps: {targets / folder.name} is missing")
        train = _pairs(train_folder, targets / train_folder.name, lonely)
        if val_folder is not None:
            val = _pairs(val_folder, targets / val_folder.name, lonely)
            note = f"split as the folders {train_folder.name}/ and {val_folder.name}/"
    else:
        train = _pairs(pictures, targets, lonely)
    if (root / "objectInfo150.txt").is_file() or root.name == "ADEChallengeData2016":
        return Found("ADE20K", train, val, _ade20k_names(root), frozenset({0}), note, None, tuple(lonely))
    names, licence = described(root)
    shown = f"{pictures.name}/ and {targets.name}/"
    return Found(shown, train, val, names, note=note, licence=licence, lonely=tuple(lonely))


def not_classes(names: Mapping[int, str]) -> frozenset[int]:
    """The numbers of classes that are called unlabelled, void or ignore."""
    return frozenset(number for number, name in names.items() if name.lower() in _NOT_CLASSES)


def described(root: Path) -> tuple[dict[int, str] | None, str | None]:
    """Class names and licence as ``dataset.json`` (``class_names``, ``licence``) or ``classes.txt`` tells them."""
    described, listed = root / "dataset.json", root / "classes.txt"
    names: object = None
    licence: object = None
    try:
        if described.is_file():
            content = json.loads(described.read_text("utf-8"))
            if isinstance(content, dict):
                names, licence = content.get("class_names"), content.get("licence")
    except (OSError, ValueError) as error:
        raise FoveateError(f"the class names of {root} cannot be read: {error}") from error
    if names is None and listed.is_file():
        names = lines_of_names(listed)
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise FoveateError(f"{described}: class_names must be a list of names, one for each number in the label maps")
    return (None if names is None else dict(enumerate(names))), licence if isinstance(licence, str) else None


def _ade20k_names(root: Path) -> dict[int, str]:
    """1 to 150 with the names of ``objectInfo150.txt``; 0 is none of them."""
    listed = root / "objectInfo150.txt"
    if not listed.is_file():
        return {number: f"class {number}" for number in range(1, 151)}
    try:
        rows = [line.split("\t") for line in listed.read_text("utf-8").splitlines()[1:] if line.strip()]
        return {int(row[0]): row[-1].split(",")[0].strip() for row in rows}
    except (OSError, ValueError, IndexError) as error:
        raise FoveateError(f"{listed} cannot be read: get it anew, or remove it for numbers as names") from error


def _voc(root: Path, wanted: str | None) -> Found:
    """``JPEGImages`` and ``SegmentationClass``, the parts in ``ImageSets/Segmentation``; 255 does not count."""
    lists = root / "ImageSets" / "Segmentation"
    parts = {}
    for part in ("train", wanted or "val"):
        file = lists / f"{part}.txt"
        if not file.is_file():
            there = [path.stem for path in sorted(lists.glob("*.txt"))]
            raise FoveateError(f"{file} is missing, which lists the images of the part; {near(part, there)}")
        names = file.read_text("utf-8").split()
        parts[part] = tuple(
            (name, root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png") for name in names
        )
    train, val = parts.values() if len(parts) == 2 else (parts["train"], ())
    note = f"split as ImageSets/Segmentation has it, train and {wanted or 'val'}"
    return Found("Pascal VOC", train, val, dict(enumerate(_VOC)), frozenset({IGNORE}), note)


def _cityscapes(root: Path, wanted: str | None) -> Found:
    """``leftImg8bit/PART/CITY/X_leftImg8bit.png`` and ``gtFine/PART/CITY/X_gtFine_labelIds.png``, 19 of 34 classes."""
    kind = "gtFine" if (root / "gtFine").is_dir() else "gtCoarse"
    lonely: list[str] = []
    folders = {path.name: path for path in sorted((root / "leftImg8bit").iterdir()) if path.is_dir()}
    parts = {name: [path] for name, path in folders.items() if (root / kind / name).is_dir()}
    train_folder, val_folder = _chosen(root / "leftImg8bit", parts, wanted or ("val" if "val" in parts else None))

    def pairs(folder: Path) -> tuple[Pair, ...]:
        found = []
        for image in walk_images(folder):
            base = image.name.removesuffix("_leftImg8bit.png")
            name = image.relative_to(root).with_suffix("").as_posix()
            label_map = root / kind / image.relative_to(folder.parent).parent / f"{base}_{kind}_labelIds.png"
            if label_map.is_file():
                found.append((name, image, label_map))
            else:
                lonely.append(name)
        return tuple(found)

    ignore = frozenset(number for number in range(_OF_CITYSCAPES) if number not in _CITYSCAPES)
    note = f"split as the folders {train_folder.name}/" + (f" and {val_folder.name}/" if val_folder else "")
    val = pairs(val_folder) if val_folder else ()
    return Found("Cityscapes", pairs(train_folder), val, _CITYSCAPES, ignore, note, None, tuple(lonely))
