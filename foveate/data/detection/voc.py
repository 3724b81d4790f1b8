"""Pascal VOC's layout: an XML file for each image, and lists of the parts.

Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010. A box is taken as its four numbers stand.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from foveate.data.detection.record import Box, Found, Record
from foveate.errors import FoveateError, first_line, near
from foveate.image_files import images_by_name

__all__ = ["is_voc", "read_voc"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(root: Path) -> bool:
    """Whether a folder holds ``JPEGImages`` and ``Annotations`` with XML files."""
    annotations = root / "Annotations"
    return (root / "JPEGImages").is_dir() and annotations.is_dir() and next(annotations.glob("*.xml"), None) is not None


def read_voc(root: Path, wanted: str | None) -> Found:
    """Read every annotation of the parts; without ``ImageSets/Main`` all of them, in one part.

    Args:
        root: the folder.
        wanted: the part to be measured on; None: "val".

    Raises:
        FoveateError: a list of a part is missing.
    """
    images = images_by_name(root / "JPEGImages", flat=True)
    lists = root / "ImageSets" / "Main"
    if not lists.is_dir():
        names = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
        lonely = tuple(f"JPEGImages/{path.name}" for name, path in images.items() if name not in set(names))
        return Found("Pascal VOC", [_record(root, name, images) for name in names], (), None, "", lonely)
    parts = {}
    for part in ("train", wanted or "val"):
        file = lists / f"{part}.txt"
        if not file.is_file():
            there = [path.stem for path in sorted(lists.glob("*.txt"))]
            raise FoveateError(f"{file} is missing, which lists the images of the part; {near(part, there)}")
        lines = file.read_text("utf-8", "replace").splitlines()
        parts[part] = [_record(root, line.split()[0], images) for line in lines if line.strip()]
    train, val = parts.values() if len(parts) == 2 else (parts["train"], ())
    return Found("Pascal VOC", train, val, None, f"split as ImageSets/Main has it, train and {wanted or 'val'}")


def _record(root: Path, name: str, images: dict[str, Path]) -> Record:
    path = root / "Annotations" / f"{name}.xml"
    image = images.get(name, root / "JPEGImages" / f"{name}.jpg")
    if name not in images and image.parent != root / "JPEGImages":  # such as ../elsewhere
        return Record(name, None)
    shown = image.relative_to(root).as_posix()
    if not path.is_file():
        return Record(shown, image, problem=f"the annotation {path} is missing")
    try:
        tree = _parse(path)
    except (OSError, ValueError, expat.ExpatError) as error:
        return Record(shown, image, problem=f"the annotation {path} cannot be read: {first_line(error)}")
    size = _numbers(tree.find("size"), ("height", "width"))
    boxes = tuple(
        Box(
            (entry.findtext("name") or "").strip(),
            _numbers(entry.find("bndbox"), _CORNERS),
            (entry.findtext("difficult") or "0").strip() == "1",
        )
        for entry in tree.findall("object")
    )
    # A size of 0 stands in files whose program did not look at the image.
    stated = size is not None and all(math.isfinite(side) and side > 0 for side in size)
    return Record(shown, image, (int(size[0]), int(size[1])) if size is not None and stated else None, boxes)


def _numbers(parent: Element | None, names: tuple[str, ...]) -> tuple[float, ...] | None:
    with contextlib.suppress(ValueError, TypeError):
        return tuple(float(parent.findtext(name) or "") for name in names) if parent is not None else None
    return None


def _parse(path: Path) -> Element:
    """The tree of an XML file. A document type is refused: it could declare entities that grow without end."""

    def refuse(*_: object) -> NoReturn:
        raise ValueError("it declares a document type or entities, which an annotation has no use for")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(path.read_bytes(), True)
    return builder.close()
