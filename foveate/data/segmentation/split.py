"""What a data set for segmentation is: classes, and two sequences of images with label maps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from foveate.arguments import checked_class
from foveate.data.segmentation.label_map import IGNORE, Source, content_of, read_classes
from foveate.errors import FoveateError, printable
from foveate.html import html_lines, html_table
from foveate.images import open_image

__all__ = ["IGNORE", "SegmentationData", "SegmentationSplit"]


@dataclass(frozen=True)
class SegmentationSplit:
    """One part of a data set: a sequence of (image, label map).

    It holds paths or encoded bytes, never decoded pixels, so that worker processes get it at little cost.

    Args:
        name: ``train`` or ``val``.
        images: path of each image, its encoded bytes, or a row of another library's data set.
        maps: the same of each label map.
        names: what each image is called in errors and in the fingerprint, relative to the data set's folder.
        sizes: height and width of each image.
        table: for each of the 256 numbers that a label map may hold the class, ``IGNORE`` where the pixel does not
            count, or -1 where the number means nothing.
        classes: the class names of the data set.
    """

    name: str
    images: tuple[Source, ...]
    maps: tuple[Source, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    table: tuple[int, ...]
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<SegmentationSplit {self.name!r}: {len(self)} images>"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        return self.load(index), self.target(index)

    def load(self, index: int) -> Image.Image:
        """Decode one image to RGB.

        Raises:
            FoveateError: the image cannot be decoded; the message names the file.
        """
        return open_image(content_of(self.images[index]), name=self._called(self.images[index], index))

    def target(self, index: int) -> Image.Image:
        """The class of each pixel as a grey picture of the image's size; ``IGNORE`` where a pixel does not count.

        Raises:
            FoveateError: the label map cannot be read, has another size than the image, or holds a number that stands
                for no class; the message names the file.
        """
        name = self._called(self.maps[index], index)
        return Image.fromarray(read_classes(self.maps[index], self.table, self.sizes[index], name))

    def _called(self, source: Source, index: int) -> str:
        return source if isinstance(source, str) else self.names[index]

    def subset(self, indices: Sequence[int]) -> SegmentationSplit:
        """The images at these positions, in this order."""
        return replace(
            self,
            images=tuple(self.images[index] for index in indices),
            maps=tuple(self.maps[index] for index in indices),
            names=tuple(self.names[index] for index in indices),
            sizes=tuple(self.sizes[index] for index in indices),
        )


@checked_class
@dataclass(frozen=True)
class SegmentationData:
    """A data set for segmentation.

    Args:
        name: the folder's name.
        classes: class names; a pixel's class is a position in them.
        train: what the network learns from.
        val: what it is measured on.
        licence: terms of use, if the data set states them.
        note: a text that says how the parts were made, and which numbers are ignored.
        unused: (reason, names) of every file that is not used; the reason goes on after "12 files".
    """

    name: str
    classes: tuple[str, ...]
    train: SegmentationSplit
    val: SegmentationSplit
    licence: str | None = None
    note: str = ""
    unused: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(printable, self.classes)))
        for part in ("train", "val"):
            object.__setattr__(self, part, replace(getattr(self, part), classes=self.classes))
        object.__setattr__(self, "note", printable(self.note))

    def __repr__(self) -> str:
        counts = f"{len(self.train):,} training and {len(self.val):,} validation images with label maps"
        return f"<SegmentationData {self.name!r}: {len(self.classes)} classes, {counts}>"

    def _repr_html_(self) -> str:
        counts = f"{self.name}: {len(self.train)} training and {len(self.val)} validation images with label maps"
        unused = [f"{len(names)} files {reason}" for reason, names in self.unused]
        head = html_lines(counts, [self.note, self.licence or "", *unused])
        return head + html_table(("number", "class"), [(str(n), name) for n, name in enumerate(self.classes)])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over class names, what numbers mean, and each image's name and both files' sizes in bytes.

        An image or a label map that is replaced by one of exactly the same number of bytes is not noticed.
        """
        digest = hashlib.sha256(repr(("segmentation", self.classes, self.train.table)).encode())
        for split in (self.train, self.val):
            digest.update(f"\n{split.name} {len(split)}\n".encode())
            for image, label_map, name in zip(split.images, split.maps, split.names, strict=True):
                digest.update(f"{name!r} {_bytes(image)} {_bytes(label_map)}\n".encode())
        return digest.hexdigest()


def _bytes(source: Source) -> int:
    if not isinstance(source, str):
        return len(source) if isinstance(source, bytes) else source.size
    try:
        return Path(source).stat().st_size
    except OSError as error:
        raise FoveateError(f"{source} cannot be read: {error.strerror}") from error
