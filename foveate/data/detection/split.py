"""What a data set for detection is: classes, and two sequences of images with boxes, and perhaps masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from foveate.arguments import checked_class
from foveate.data.detection.masks import InstanceMasks
from foveate.errors import FoveateError, printable
from foveate.html import html_lines, html_table
from foveate.images import open_image

__all__ = ["DetectionData", "DetectionSplit", "Objects"]


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image.

    Args:
        boxes: (n, 4) float32, left, top, right and bottom in pixels, within the image.
        labels: (n,) int64, the class of each.
        ignored: (n,) bool, True for a crowd or a difficult object, which counts neither in training nor in a metric.
        masks: of each, within the image; None where the part of the data set has no masks.
    """

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]
    masks: InstanceMasks | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def masked(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the mask of each is known."""
        return np.zeros(len(self), np.bool_) if self.masks is None else self.masks.known


@dataclass(frozen=True, eq=False)
class DetectionSplit:
    """One part of a data set: a sequence of (image, objects).

    It holds paths, never decoded pixels, so that worker processes get it at little cost.

    Args:
        name: ``train`` or ``val``.
        images: path of each image.
        names: what each image is called in errors and in the fingerprint, relative to the data set's folder.
        sizes: height and width of each image.
        objects: of each image; there may be none.
        classes: the class names of the data set.
    """

    name: str
    images: tuple[str, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    objects: tuple[Objects, ...] = field(repr=False)
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        masks = " with masks" if self.has_masks else ""
        return f"<DetectionSplit {self.name!r}: {len(self)} images, {sum(map(len, self.objects))} objects{masks}>"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Objects]:
        return self.load(index), self.objects[index]

    def load(self, index: int) -> Image.Image:
        """Decode one image to RGB.

        Raises:
            FoveateError: the image cannot be decoded, or has another size than when the data set was opened; the
                message names the file.
        """
        image = open_image(self.images[index], name=self.images[index])
        if (image.height, image.width) != self.sizes[index]:
            raise FoveateError(
                f"{self.images[index]} is {image.width}x{image.height} pixels and was "
                f"{self.sizes[index][1]}x{self.sizes[index][0]} when the data set was opened: open it again"
            )
        return image

    def subset(self, indices: Sequence[int]) -> DetectionSplit:
        """The images at these positions, in this order."""
        return replace(
            self,
            images=tuple(self.images[index] for index in indices),
            names=tuple(self.names[index] for index in indices),
            sizes=tuple(self.sizes[index] for index in indices),
            objects=tuple(self.objects[index] for index in indices),
        )

    @property
    def has_masks(self) -> bool:
        """Whether the mask of an object that counts is known."""
        return any(bool((one.masked & ~one.ignored).any()) for one in self.objects)

    def without_mask(self) -> list[str]:
        """The name of the image of each object that counts and whose mask is not known."""
        counts = [int((~one.masked & ~one.ignored).sum()) for one in self.objects]
        return [name for name, count in zip(self.names, counts, strict=True) for _ in range(count)]

    def counts(self) -> list[int]:
        """How many objects there are of each class, those that are ignored left out."""
        found = np.zeros(len(self.classes), np.int64)
        for one in self.objects:
            found += np.bincount(one.labels[~one.ignored], minlength=len(self.classes))
        return [int(count) for count in found]


@checked_class
@dataclass(frozen=True, eq=False)
class DetectionData:
    """A data set for detection.

    Args:
        name: the folder's name.
        classes: class names; an object's class is a position in them.
        train: what the network learns from.
        val: what it is measured on.
        licence: terms of use, if the data set states them.
        note: a text that says how the parts were made.
        bad: (image, reason) of each box or mask that was cut off or left out, and of each image that was left out.
        unused: (reason, names) of every file that is not used; the reason goes on after "12 files".
    """

    name: str
    classes: tuple[str, ...]
    train: DetectionSplit
    val: DetectionSplit
    licence: str | None = None
    note: str = ""
    bad: tuple[tuple[str, str], ...] = ()
    unused: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(printable, self.classes)))
        for part in ("train", "val"):
            object.__setattr__(self, part, replace(getattr(self, part), classes=self.classes))
        object.__setattr__(self, "note", printable(self.note))

    def __repr__(self) -> str:
        counts = f"{len(self.train):,} training and {len(self.val):,} validation images with boxes"
        return f"<DetectionData {self.name!r}: {len(self.classes)} classes, {counts}>"

    def _repr_html_(self) -> str:
        counts = f"{self.name}: {len(self.train)} training and {len(self.val)} validation images with boxes"
        unused = [f"{len(names)} files {reason}" for reason, names in self.unused]
        head = html_lines(counts, [self.note, self.licence or "", *unused, *(reason for _, reason in self.bad[:10])])
        rows = [
            (name, str(train), str(val))
            for name, train, val in zip(self.classes, self.train.counts(), self.val.counts(), strict=True)
        ]
        return head + html_table(("class", "training objects", "validation objects"), rows)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over class names, every box and mask, and each image's name and size in bytes.

        An image that is replaced by one of exactly the same number of bytes is not noticed.
        """
        digest = hashlib.sha256(repr(("detection", self.classes)).encode())
        for split in (self.train, self.val):
            digest.update(f"\n{split.name} {len(split)}\n".encode())
            for image, name, objects in zip(split.images, split.names, split.objects, strict=True):
                digest.update(f"{name!r} {_bytes(image)}\n".encode())
                for part in (objects.boxes, objects.labels, objects.ignored):
                    digest.update(np.ascontiguousarray(part).tobytes())
                if objects.masks is not None:
                    digest.update(repr(objects.masks.runs).encode())
        return digest.hexdigest()


def _bytes(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise FoveateError(f"{path} cannot be read: {error.strerror}") from error
