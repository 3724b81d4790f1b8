"""What is wrong with a data set for detection: every annotation is read and every image decoded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from foveate.data.detection.opening import open_detection
from foveate.data.detection.split import DetectionData
from foveate.errors import FoveateError
from foveate.html import html_lines, html_table
from foveate.io import JsonObject

__all__ = ["DetectionReport", "check_detection"]


@dataclass(frozen=True)
class DetectionReport:
    """What was found.

    Args:
        name: of the data set.
        note: how its parts were made.
        objects: (class, training objects, validation objects) of each class, without those that are ignored.
        ignored: objects that are marked as a crowd or as difficult.
        empty: names of the images without an object.
        bad: (image, reason) of each box, mask and image that cannot be used as it stands.
        unused: (reason, names) of every file that is not used.
        masks: objects that count and whose mask is known, in both parts.
        without_mask: the name of the image of each other object that counts, where some have a mask.
    """

    name: str
    note: str
    objects: tuple[tuple[str, int, int], ...]
    ignored: int
    empty: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    unused: tuple[tuple[str, tuple[str, ...]], ...]
    masks: int = 0
    without_mask: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is bad, and every class has training objects."""
        return not self.bad and all(train for _, train, _ in self.objects)

    def to_dict(self) -> JsonObject:
        """As plain values, for JSON."""
        return {
            "name": self.name,
            "note": self.note,
            "sound": self.sound,
            "objects": [{"class": name, "train": train, "val": val} for name, train, val in self.objects],
            "ignored": self.ignored,
            "masks": self.masks,
            "without_mask": list(self.without_mask),
            "empty": list(self.empty),
            "bad": [{"image": name, "reason": reason} for name, reason in self.bad],
            "unused": [{"reason": reason, "files": list(names)} for reason, names in self.unused],
        }

    def _repr_html_(self) -> str:
        lines = [self.note, *(reason for _, reason in self.bad), *(f"no object in {name}" for name in self.empty)]
        rows = [(name, str(train), str(val)) for name, train, val in self.objects]
        return html_lines(self.name, lines) + html_table(("class", "training objects", "validation objects"), rows)


def check_detection(
    source: str | os.PathLike[str] | DetectionData,
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
) -> DetectionReport:
    """Read every annotation and every image of a data set and say what is wrong with it.

    Args:
        source: as ``open_detection`` takes it.
        classes: as there.
        seed: of the split, where the source has none.
        val_fraction: part for validation, where the source has no split.

    Returns:
        What was found; nothing is changed.

    Raises:
        FoveateError: the data set cannot be opened: it has another layout, or no image of a part can be used; or the
            part for validation is none.
    """
    data = open_detection(source, classes=classes, on_bad_image="skip", seed=seed, val_fraction=val_fraction)
    bad, empty, ignored = list(data.bad), [], 0
    for split in (data.train, data.val):
        for index, name in enumerate(split.names):
            try:
                split.load(index)
            except FoveateError as error:
                bad.append((name, str(error)))
            ignored += int(split.objects[index].ignored.sum())
            if not len(split.objects[index]):
                empty.append(name)
    counts = tuple(zip(data.classes, data.train.counts(), data.val.counts(), strict=True))
    masks = sum(int((one.masked & ~one.ignored).sum()) for split in (data.train, data.val) for one in split.objects)
    without = (*data.train.without_mask(), *data.val.without_mask()) if masks else ()
    return DetectionReport(
        data.name, data.note, counts, ignored, tuple(empty), tuple(bad), data.unused, masks, tuple(without)
    )
