"""What a data set is: classes, and two sequences of images with labels."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from foveate.arguments import checked_class
from foveate.data.sources import Piece, Row
from foveate.errors import FoveateError, printable
from foveate.html import html_lines, html_table
from foveate.images import open_image

__all__ = ["ImageData", "Split"]

_OF_A_PATH = 2**15  # a file's size takes a moment, too
_LOOKED_AT = 512 * 2**20  # bytes of a part of another library's data that a fingerprint is made of


@dataclass(frozen=True)
class Split:
    """One part of a data set: a sequence of (image, label).

    It holds paths or encoded bytes, never decoded pixels, so that worker processes get it at little cost.

    Args:
        name: ``train`` or ``val``.
        sources: for each image a path, the encoded bytes of a Parquet row, a piece of a tar file, or a row of another
            library's data set.
        labels: position of each image's class in :attr:`ImageData.classes`.
        names: what each image is called in errors and in the fingerprint, relative to the data set's folder.
        classes: the class names of the data set, which :class:`ImageData` fills in; () where they are not known.
    """

    name: str
    sources: tuple[str | bytes | Piece | Row, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Split {self.name!r}: {len(self)} images>"

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.load(index), self.labels[index]

    def load(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one image.

        Args:
            index: its position.
            at_least: decode a large JPEG at a reduced scale, as in :func:`foveate.images.open_image`.

        Returns:
            RGB image.

        Raises:
            FoveateError: the image cannot be decoded; the message names the file or the row.
        """
        source = self.sources[index]
        if isinstance(source, str):
            return open_image(source, at_least=at_least, name=source)
        encoded = source if isinstance(source, bytes) else source.read()
        return open_image(encoded, at_least=at_least, name=self.names[index])

    def label(self, index: int) -> int:
        """Position of the image's class in :attr:`ImageData.classes`."""
        return self.labels[index]

    def subset(self, indices: Sequence[int]) -> Split:
        """The images at these positions, in this order."""
        return Split(
            self.name,
            tuple(self.sources[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            tuple(self.names[i] for i in indices),
            self.classes,
        )


@checked_class
@dataclass(frozen=True)
class ImageData:
    """A data set for classification.

    Args:
        name: the folder's or file's name, or ``elpv``.
        classes: class names; a label is a position in them, the same for both parts.
        train: what the network learns from.
        val: what its accuracy is measured on.
        licence: terms of use, if the data set states them.
        note: a text that says how the parts were made and what was left out.
        bad: names of damaged images that were left out.
        unused: (reason, names) of every other file, row or sample that is not used; the reason goes on after "12
            files".
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    licence: str | None = None
    note: str = ""
    bad: tuple[str, ...] = ()
    unused: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        # Names are shown, on terminals, too: a control character in one must not do anything there.
        object.__setattr__(self, "classes", tuple(map(printable, self.classes)))
        for part in ("train", "val"):
            split = getattr(self, part)
            split = replace(split, classes=self.classes, names=tuple(map(printable, split.names)))
            object.__setattr__(self, part, split)
        object.__setattr__(self, "note", printable(self.note))
        unused = tuple((reason, tuple(map(printable, names))) for reason, names in self.unused)
        object.__setattr__(self, "unused", unused)

    def __repr__(self) -> str:
        counts = f"{len(self.train):,} training and {len(self.val):,} validation images"
        return f"<ImageData {self.name!r}: {len(self.classes)} classes, {counts}>"

    def _repr_html_(self) -> str:
        train, val = Counter(self.train.labels), Counter(self.val.labels)
        rows = [(name, train[label], val[label]) for label, name in enumerate(self.classes)]
        counts = f"{self.name}: {len(self.train)} training and {len(self.val)} validation images"
        unused = [f"{len(names)} {reason}" for reason, names in self.unused]
        head = html_lines(counts, [self.note, self.licence or "", *unused])
        return head + html_table(("class", "training images", "validation images"), rows)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over class names and, per part and in order, each image's name, label and size in bytes.

        It is the same wherever the data set is stored, and changes when an image is added, removed, renamed,
        relabelled, moved to the other part or replaced by one of another size. An image replaced by one of exactly
        the same size is not noticed. Of another library's images a digest of their bytes or pixels stands in the place
        of the size, for as many as have 512 MiB in each part, spread over it: the others are not read for this.

        Raises:
            FoveateError: an image is not there any more, or another library does not give it.
        """
        digest = hashlib.sha256(repr(self.classes).encode())
        for split in (self.train, self.val):
            digest.update(f"\n{split.name} {len(split)}\n".encode())
            for state, label, name in zip(_states(split), split.labels, split.names, strict=True):
                digest.update(f"{name!r} {label} {state}\n".encode())
        return digest.hexdigest()


def _states(split: Split) -> list[int | str]:
    """Of each image its bytes, or a digest where another library gives it; "" where enough of these were read."""
    states: list[int | str] = [""] * len(split)
    left = _LOOKED_AT
    for index in np.random.default_rng(0).permutation(len(split)).tolist():
        source = split.sources[index]
        if not isinstance(source, Row):
            states[index] = _size(source)
            continue
        if left <= 0:
            continue
        found = source.read()
        if isinstance(found, str):
            states[index] = _size(found)
            left -= _OF_A_PATH
            continue
        content = found if isinstance(found, bytes) else open_image(found, name=split.names[index]).tobytes()
        shape = "" if isinstance(found, bytes) else found.size
        states[index] = hashlib.sha256(f"{shape}".encode() + content).hexdigest()
        left -= len(content)
    return states


def _size(source: str | bytes | Piece) -> int:
    """Bytes of an encoded image."""
    if isinstance(source, bytes):
        return len(source)
    if not isinstance(source, str):
        return source.size
    try:
        return os.stat(source).st_size
    except OSError as error:
        raise FoveateError(f"{source} cannot be read: {error.strerror}") from error
