"""What is wrong with a data set: bad files, the same picture twice, classes that are empty or rare."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from foveate.data.opening import open_unchecked
from foveate.data.parts import NOT_READ_REASON
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError
from foveate.html import html_lines, html_table
from foveate.io import JsonObject

__all__ = ["DataReport", "check_data"]

T = TypeVar("T")
_SHOWN = 10  # of a kind, in a notebook


@dataclass(frozen=True)
class DataReport:
    """What was found in a data set.

    Args:
        name: of the data set.
        note: how its parts were made.
        counts: (class, training images, validation images), in the order of the classes.
        bad: (image, why) of each image that cannot be used.
        unused: (reason, names) of every other file, row or sample that is not used.
        same_bytes: groups of images that are equal byte by byte, each "part/name".
        same_pixels: groups that are equal once decoded, and not byte by byte.
        leaks: the groups of both kinds that stand in training and in validation.
        two_classes: the groups of both kinds that stand in two classes.
    """

    name: str
    note: str
    counts: tuple[tuple[str, int, int], ...]
    bad: tuple[tuple[str, str], ...]
    same_bytes: tuple[tuple[str, ...], ...]
    same_pixels: tuple[tuple[str, ...], ...]
    leaks: tuple[tuple[str, ...], ...]
    two_classes: tuple[tuple[str, ...], ...]
    unused: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def sound(self) -> bool:
        """No bad image, none on both sides or in two classes, none in a format that is not read, no empty class."""
        lost = any(reason == NOT_READ_REASON for reason, _ in self.unused)
        empty = any(train == 0 for _, train, _ in self.counts)
        return not (self.bad or self.leaks or self.two_classes or lost or empty)

    def to_dict(self) -> JsonObject:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "note": self.note,
            "sound": self.sound,
            "classes": [{"class": name, "train": train, "val": val} for name, train, val in self.counts],
            "bad": [{"image": image, "reason": reason} for image, reason in self.bad],
            "unused": [{"reason": reason, "names": list(names)} for reason, names in self.unused],
            **{
                group: [list(names) for names in getattr(self, group)]
                for group in ("same_bytes", "same_pixels", "leaks", "two_classes")
            },
        }

    def _repr_html_(self) -> str:
        lines = {
            "bad images": [f"{image}: {reason}" for image, reason in self.bad],
            "in training and in validation": [" = ".join(group) for group in self.leaks],
            "in two classes": [" = ".join(group) for group in self.two_classes],
            "equal byte by byte": [" = ".join(group) for group in self.same_bytes],
            "equal once decoded": [" = ".join(group) for group in self.same_pixels],
            **{f"not used, {reason}": list(names) for reason, names in self.unused},
        }
        rows = [
            (what, len(found), "; ".join(found[:_SHOWN]) + "; ..." * (len(found) > _SHOWN))
            for what, found in lines.items()
        ]
        head = html_lines(f"{self.name}: {'sound' if self.sound else 'not sound'}", [self.note])
        return (
            f"{head}{html_table(('what', 'how many', 'which'), rows, right=(1,))}"
            f"{html_table(('class', 'training images', 'validation images'), self.counts)}"
        )


def check_data(source: str | os.PathLike[str] | ImageData, *, seed: int = 0, val_fraction: float = 0.2) -> DataReport:
    """Decode every image of a data set and report what is wrong with it; nothing is left out and nothing stops it.

    Args:
        source: as for ``open_data``.
        seed: of the split, where the source has none.
        val_fraction: part for validation, where the source has no split.

    Returns:
        What was found; nothing is changed.

    Raises:
        FoveateError: the data set cannot be opened at all.
    """
    data = source if isinstance(source, ImageData) else open_unchecked(source, seed, val_fraction)
    bad: list[tuple[str, str]] = []
    by_bytes: dict[str, list[_At]] = defaultdict(list)
    by_pixels: dict[str, list[_At]] = defaultdict(list)
    for split in (data.train, data.val):
        for index, found in enumerate(_each(len(split), _digests(split))):
            at = _At(split.name, split.names[index], split.labels[index])
            if isinstance(found, FoveateError):
                bad.append((str(at), str(found)))
            else:
                by_bytes[found[0]].append(at)
                by_pixels[found[1]].append(at)
    equal = [group for group in by_bytes.values() if len(group) > 1]
    known = {at for group in equal for at in group}
    # A group is new where not all of it is one group of equal bytes.
    alike = [group for group in by_pixels.values() if len(group) > 1 and not _is_one(group, equal, known)]
    groups = equal + alike
    train, val = Counter(data.train.labels), Counter(data.val.labels)
    return DataReport(
        name=data.name,
        note=data.note,
        counts=tuple((name, train[label], val[label]) for label, name in enumerate(data.classes)),
        bad=tuple(bad),
        same_bytes=_named(equal),
        same_pixels=_named(alike),
        leaks=_named([group for group in groups if len({at.part for at in group}) > 1]),
        two_classes=_named([group for group in groups if len({at.label for at in group}) > 1]),
        unused=data.unused,
    )


@dataclass(frozen=True)
class _At:
    part: str
    name: str
    label: int

    def __str__(self) -> str:
        return self.name if self.name.startswith(f"{self.part}/") else f"{self.part}: {self.name}"


def _named(groups: Sequence[Sequence[_At]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(str(at) for at in group) for group in groups)


def _is_one(group: Sequence[_At], equal: Sequence[Sequence[_At]], known: set[_At]) -> bool:
    return group[0] in known and any(set(group) == set(other) for other in equal)


def _digests(split: Split) -> Callable[[int], tuple[str, str] | FoveateError]:
    """Position -> SHA-256 of an image's bytes and of its decoded pixels, or what is wrong with it."""

    def digests(index: int) -> tuple[str, str] | FoveateError:
        source = split.sources[index]
        try:
            encoded = source if isinstance(source, bytes | str) else source.read()
            image = split.load(index)
            raw = Path(encoded).read_bytes() if isinstance(encoded, str) else encoded
        except (FoveateError, OSError) as error:
            return error if isinstance(error, FoveateError) else FoveateError(f"{split.names[index]}: {error}")
        pixels = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        return (hashlib.sha256(raw).hexdigest() if isinstance(raw, bytes) else pixels), pixels

    return digests


def _each(count: int, work: Callable[[int], T]) -> list[T]:
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        return list(pool.map(work, range(count)))
