"""What is wrong with a data set for segmentation: every image and every label map is read."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from foveate.data.segmentation.opening import open_segmentation
from foveate.data.segmentation.split import IGNORE, SegmentationData
from foveate.errors import FoveateError
from foveate.html import html_lines, html_table
from foveate.io import JsonObject

__all__ = ["SegmentationReport", "check_segmentation"]


@dataclass(frozen=True)
class SegmentationReport:
    """What was found.

    Args:
        name: of the data set.
        note: how its parts were made and which numbers are ignored.
        pixels: (class, training pixels, validation pixels) of each class.
        bad: (name, reason) of each pair that cannot be used.
        ignored: names of the pairs of whose pixels none counts.
        unused: (reason, names) of every file that is not used.
    """

    name: str
    note: str
    pixels: tuple[tuple[str, int, int], ...]
    bad: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    unused: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is bad, no label map is ignored as a whole, and every class has training pixels."""
        return not self.bad and not self.ignored and all(train for _, train, _ in self.pixels)

    def to_dict(self) -> JsonObject:
        """As plain values, for JSON."""
        return {
            "name": self.name,
            "note": self.note,
            "sound": self.sound,
            "pixels": [{"class": name, "train": train, "val": val} for name, train, val in self.pixels],
            "bad": [{"image": name, "reason": reason} for name, reason in self.bad],
            "ignored": list(self.ignored),
            "unused": [{"reason": reason, "files": list(names)} for reason, names in self.unused],
        }

    def _repr_html_(self) -> str:
        lines = [
            self.note,
            *(reason for _, reason in self.bad),
            *(f"nothing counts in {name}" for name in self.ignored),
        ]
        return html_lines(self.name, lines) + html_table(("class", "training pixels", "validation pixels"), self.pixels)


def check_segmentation(
    source: str | os.PathLike[str] | SegmentationData, *, seed: int = 0, val_fraction: float = 0.2
) -> SegmentationReport:
    """Read every image and label map of a data set and say what is wrong with it.

    Args:
        source: as ``open_segmentation`` takes it.
        seed: of the split, where the source has none.
        val_fraction: part for validation, where the source has no split.

    Returns:
        What was found; nothing is changed.

    Raises:
        FoveateError: the data set cannot be opened: a file is missing, or sizes differ; or the part for
            validation is none.
    """
    data = open_segmentation(source, seed=seed, val_fraction=val_fraction)
    bad: list[tuple[str, str]] = []
    ignored: list[str] = []
    counts = np.zeros((2, len(data.classes)), np.int64)
    for at, split in enumerate((data.train, data.val)):
        for index, name in enumerate(split.names):
            try:
                split.load(index)
                target = np.asarray(split.target(index))
            except FoveateError as error:
                bad.append((name, str(error)))
                continue
            found = np.bincount(target.ravel(), minlength=IGNORE + 1)[: len(data.classes)]
            counts[at] += found
            if not found.any():
                ignored.append(name)
    pixels = tuple((name, int(counts[0, n]), int(counts[1, n])) for n, name in enumerate(data.classes))
    return SegmentationReport(data.name, data.note, pixels, tuple(bad), tuple(ignored), data.unused)
