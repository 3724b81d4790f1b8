"""One image as an annotation file tells it, before anything of it is believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Box", "Found", "Record"]


@dataclass(frozen=True)
class Box:
    """One object.

    Args:
        label: the class's name; in quotes what stands in the file where it is none.
        place: left, top, right and bottom in pixels of the image, or what the file says instead.
        ignored: marked as a crowd or as difficult: it counts neither in training nor in a metric.
        segmentation: its mask, or what the file says instead.
    """

    label: str
    place: object
    ignored: bool = False
    segmentation: object = None


@dataclass(frozen=True)
class Record:
    """One image.

    Args:
        name: what it is called in messages, relative to the data set's folder.
        image: its file; None where the name that the annotation gives leads out of the data set's folder.
        size: height and width as the annotation says; None where it says nothing.
        boxes: its objects.
        problem: why the annotation cannot be used, or an empty text.
    """

    name: str
    image: Path | None
    size: tuple[int, int] | None = None
    boxes: tuple[Box, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        layout: whose it is, as text.
        train: images to learn from.
        val: images to be measured on; () where the folder has no such part.
        names: of the classes, where the folder tells them.
        note: how the parts were made.
        lonely: names of images without an annotation, and of annotations without an image.
        stray: (name, reason) of each annotation that belongs to no image.
    """

    layout: str
    train: Sequence[Record]
    val: Sequence[Record]
    names: tuple[str, ...] | None = None
    note: str = ""
    lonely: tuple[str, ...] = field(default=(), repr=False)
    stray: tuple[tuple[str, str], ...] = field(default=(), repr=False)
