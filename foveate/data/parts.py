"""Which part of a data set a file or folder is, by its name, and what of a data set was not used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from foveate.errors import FoveateError, first_line, near

__all__ = [
    *("NOT_READ_REASON", "PartChoice", "Unused", "check_apart", "check_class_order", "lines_of_names"),
    *("may_be_part", "part_of", "parts_of", "usable"),
]

Item = TypeVar("Item")

_WORDS = {
    "train": ("train", "training", "trainset", "trainval"),
    "val": ("val", "valid", "validation", "valset"),
    "dev": ("dev", "development", "devset"),
    "eval": ("eval", "evaluation", "holdout"),
    "test": ("test", "testing", "testset"),
}
_PART = {word: part for part, words in _WORDS.items() for word in words}
_RANK = tuple(_WORDS)
# What may stand beside the part's name in a folder's name.
_BESIDE = {"images", "image", "imgs", "img", "photos", "pictures", "jpg", "jpeg", "data", "dataset", "set", "split", ""}
# Words of names that may stand for a part of a data set.
_HINTS = {"fold", "split", "part", "subset", "set", "half", "batch", "query", "gallery", "support", "unlabeled"}
_SHOWN = 3  # names in a note
NOT_READ_REASON = "of an image format that is not read"


def part_of(name: str, *, alone: bool) -> str | None:
    """The part that a name stands for: ``train``, ``val``, ``dev``, ``eval`` or ``test``; None where it names none.

    Args:
        name: of a folder, or of a file without its suffix.
        alone: whether nothing else may be said, except words such as "images" and numbers, as in "images_train". A
            folder "train_station" is a class; a file "birds-train-0003" is a part of the birds.
    """
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    found = {_PART[word] for word in words if word in _PART}
    if len(found) != 1 or (alone and any(word not in _PART and word not in _BESIDE for word in words)):
        return None
    return found.pop()


def may_be_part(name: str) -> bool:
    """Whether a word of a folder's name speaks of parts, as in "my_train_v2", "fold1" or "left_half"."""
    return any(word in _PART or word.removesuffix("s") in _HINTS for word in re.split(r"[^a-z]+", name.lower()))


def parts_of(items: Mapping[str, Item], *, alone: bool) -> dict[str, list[Item]]:
    """Items by the part that their name stands for, in the order in which parts are preferred for validation."""
    found: dict[str, list[Item]] = {}
    for name, item in items.items():
        part = part_of(name, alone=alone)
        if part is not None:
            found.setdefault(part, []).append(item)
    return {part: found[part] for part in _RANK if part in found}


@dataclass(frozen=True)
class PartChoice:
    """Which parts a network learns from, and which one judges it, where a data set has more than two.

    Args:
        train: names of ``part_of``, such as ``("train", "val")``.
        val: one of the others.
    """

    train: tuple[str, ...]
    val: str

    @classmethod
    def parse(cls, text: str) -> PartChoice:
        """Read ``train+val:test``.

        Raises:
            FoveateError: the text has another form, a part is unknown or stands twice.
        """
        before, colon, after = text.partition(":")
        named = [_PART.get(word.strip().lower(), "") for word in (*before.split("+"), after)]
        for word, part in zip((*before.split("+"), after), named, strict=True):
            if colon and not part:
                raise FoveateError(f"parts={text!r}: there is no part {word.strip()!r}; {near(word, _RANK)}")
        if not colon or len(set(named)) != len(named):
            raise FoveateError(
                f"parts={text!r}: write the parts to train on, a colon and another part to be judged by, as in "
                "'train+val:test'"
            )
        return cls(tuple(named[:-1]), named[-1])

    def pick(self, found: Mapping[str, list[Item]], where: object) -> tuple[list[Item], list[Item]]:
        """Of what there is the items to train on, in the order asked for, and those of the other part.

        Args:
            found: by part.
            where: they were found, for errors.

        Raises:
            FoveateError: a part is not there.
        """
        for part in (*self.train, self.val):
            if part not in found:
                raise FoveateError(f"{where} has no part {part!r} (parts={str(self)!r}); it has {', '.join(found)}")
        return [item for part in self.train for item in found[part]], list(found[self.val])

    def __str__(self) -> str:
        return f"{'+'.join(self.train)}:{self.val}"


def check_class_order(train: Sequence[str] | None, held: Sequence[str] | None, where: str) -> None:
    """Make sure that a number stands for one class in the parts to learn from and to be measured on.

    Args:
        train: the class names of the one, if it tells them.
        held: of the other.
        where: what they are read from, for the message.

    Raises:
        FoveateError: a number stands for two classes.
    """
    for number, (name, other) in enumerate(zip(train or (), held or (), strict=False)):
        if name != other:
            raise FoveateError(
                f"{where}: the label {number} is {name!r} in training and {other!r} in validation: write both with one "
                "order of classes"
            )


def check_apart(train: Iterable[Path], held: Iterable[Path]) -> None:
    """Make sure that no image file is learned from and measured on, by whatever names. What is missing is passed over.

    Raises:
        FoveateError: a file is in both parts.
    """
    files = {identity: path for path in train if (identity := _identity(path))}
    both = [(files[identity], path) for path in held if (identity := _identity(path)) in files]
    if both:
        first, second = both[0]
        more = f", and {len(both) - 1} more are" if len(both) > 1 else ""
        shown = str(first) if first == second else f"{first} and {second} are one file, which"
        raise FoveateError(f"{shown} is in the training and in the validation part{more}: take it out of one of them")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def lines_of_names(file: Path) -> list[str]:
    """Class names, one on each line, for the numbers from 0 on.

    Raises:
        FoveateError: the file cannot be read, or a line before the last name is empty.
    """
    try:
        names = [line.strip() for line in file.read_text("utf-8-sig").rstrip().splitlines()]
    except (OSError, ValueError) as error:
        raise FoveateError(f"{file} cannot be read: {first_line(error)}") from error
    for number, name in enumerate(names):
        if not name:
            raise FoveateError(
                f"{file}: line {number + 1} is empty, and a line is the name of a number: name it {number}"
            )
    return names


def usable(label: object) -> bool:
    """Whether a label stands for a class: -1 (and any number below 0) says that there is none."""
    return not (isinstance(label, int) and label < 0)


class Unused:
    """Files, rows or samples of a data set that are not used, by reason."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, names: str | Iterable[str]) -> None:
        """Count one or several. The reason goes on after "12 files", such as "without an image suffix"."""
        self._names.setdefault(reason, []).extend([names] if isinstance(names, str) else names)

    def listed(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(reason, names) in the order in which they were met, without empty ones."""
        return tuple((reason, tuple(names)) for reason, names in self._names.items() if names)

    def as_text(self, what: str = "file", others: Mapping[str, str] | None = None) -> list[str]:
        """A clause for each reason: "left out 12 files without an image suffix (a.txt, b.txt, c.txt, ...)".

        Args:
            what: is counted, in the singular.
            others: for some reasons something else.
        """
        clauses = []
        for reason, names in self.listed():
            kind = (others or {}).get(reason, what) + "s" * (len(names) > 1)
            shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
            clauses.append(f"left out {len(names)} {kind} {reason} ({shown})")
        return clauses
