"""What ``predict`` gives: predictions that are computed when they are read, and how they are written down."""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from foveate.errors import FoveateError, printable
from foveate.html import html_lines, html_table
from foveate.io import harmless_cell, write_atomically
from foveate.prediction.copies import Copies

__all__ = ["Prediction", "Predictions", "distinct_labels"]

_KEPT_BYTES = 64_000_000  # of predictions that can be read again
_SHOWN = 10  # rows in a notebook
_FIXED = ("path", "prediction", "probability")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a classifier says of one image.

    Args:
        name: the image's path, its name in the data set, or "image N".
        index: the class with the largest logit.
        label: its name; its number where the classifier has no names.
        probability: its softmax probability.
        top: (label, probability) of the largest, in falling order.
        probabilities: (K,) float32 on the CPU, of every class.
        path: the image's file, where it has one of its own.
    """

    name: str
    index: int
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    probabilities: Tensor = field(repr=False)
    path: Path | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return printable(f"{self.name}: {', '.join(f'{label} {share:.1%}' for label, share in self.top)}")

    def to_dict(self) -> dict[str, Any]:
        """The name, the predicted class and the largest probabilities, for JSON."""
        return {
            "path": self.name,
            "prediction": self.label,
            "probability": self.probability,
            "top": dict(self.top),
        }


def distinct_labels(classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """A label for each class that no other has: its name, with its number where several share it, else its number.

    Labels are also headings of a table, so those of its other columns are taken.
    """
    if not classes:
        return tuple(map(str, range(count)))
    times = Counter([*classes, *_FIXED])
    labels = [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(classes)]
    if len(set(labels)) < count:  # a name that looks like what was made of another
        labels = [f"{name} ({number})" for number, name in enumerate(classes)]
    return tuple(labels)


class Predictions:
    """Predictions in the order of the images, computed as they are read.

    Iterate, or call :meth:`to_csv`, :meth:`copy_to` or :meth:`write`. The first ones, up to 64 MB of them, are kept and
    can be read again; the others are given once, so that any number of images takes the same memory.

    Args:
        stream: computes them; called with this object, whose ``labels`` it sets before the first.
        bad: (name, reason) of the images that could not be predicted so far; the stream adds to it.
        folders: where the images come from.
    """

    def __init__(
        self,
        stream: Callable[[Predictions], Iterator[Prediction]],
        bad: list[tuple[str, str]],
        folders: Sequence[Path] = (),
    ) -> None:
        self._stream = stream(self)
        self._bad, self._folders = bad, tuple(folders)
        self._kept: list[Prediction] = []
        self._bytes = self._read = 0
        self._error: BaseException | None = None
        self._labels: tuple[str, ...] = ()
        self.named = True

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of each image that could not be predicted, so far: all once everything is read."""
        return tuple(self._bad)

    @property
    def labels(self) -> tuple[str, ...]:
        """A label for each class: its name, else its number (``named`` is False then). Computes the first batch."""
        if not self._labels:
            next(iter(self), None)
        return self._labels

    @property
    def has_classes(self) -> bool:
        """Whether the stream has said what the outputs are called."""
        return bool(self._labels)

    def set_classes(self, classes: Sequence[str] | None, count: int) -> None:
        """Say what the outputs are called; for the stream."""
        self._labels, self.named = distinct_labels(classes, count), bool(classes)

    def __iter__(self) -> Iterator[Prediction]:
        """Yields every prediction.

        Raises:
            FoveateError: those that come next were read before and are not kept, an image is bad and the call was
                ``strict``, or no image could be predicted.
        """
        at = 0
        while True:
            if at < len(self._kept):
                yield self._kept[at]
            elif at < self._read:
                raise FoveateError(
                    f"{self._read} predictions were read and the first {len(self._kept)} are kept: call predict again, "
                    "or keep them with list(...)"
                )
            else:
                found = self._next()
                if found is None:
                    return
                yield found
            at += 1

    def _next(self) -> Prediction | None:
        if self._error is not None:
            raise self._error
        try:
            found = next(self._stream, None)
        except BaseException as error:
            self._error = error  # a stream that has failed seems to have ended
            raise
        if found is None:
            if not self._read and self._bad:
                name, reason = self._bad[0]
                more = f" (and {len(self._bad) - 1} more like it)" if len(self._bad) > 1 else ""
                first = reason if name in reason else f"{name}: {reason}"
                self._error = FoveateError(f"no image could be predicted: {first}{more}")
                raise self._error
            return None
        if len(self._kept) == self._read and self._bytes < _KEPT_BYTES:
            self._kept.append(found)
            self._bytes += sys.getsizeof(found.name) + 4 * len(found.probabilities) + 1000
        self._read += 1
        return found

    def write(
        self,
        csv: str | os.PathLike[str] | TextIO | None = None,
        *,
        copy_to: str | os.PathLike[str] | None = None,
        each: Callable[[Prediction], object] | None = None,
    ) -> int:
        """Read everything once, and write it down as it comes.

        Args:
            csv: a file, which appears when everything is in it, or an open text stream: a row for each image with its
                path, the predicted class, its probability, then the probability of every class.
            copy_to: a folder; each image's file is copied into a folder in it that is called as the predicted class.
                Nothing is overwritten: a name that is taken gets a number.
            each: is called with each prediction.

        Returns:
            How many images were predicted.

        Raises:
            FoveateError: a file cannot be written, an image to copy has no file, ``copy_to`` lies in a folder that the
                images are read from, or as for reading.
        """
        actions = [each] if each is not None else []
        if copy_to is not None:
            copies = Copies(Path(copy_to), self._folders)
            actions.insert(0, lambda one: copies.add(one.path, one.label, one.name))
        if csv is None:
            for _ in self._passed(actions):
                pass
            return self._read
        if isinstance(csv, str | os.PathLike):

            def write_file(place: Path) -> None:
                with place.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                    self._write_rows(file, actions)

            write_atomically(Path(csv), write_file)
        else:
            self._write_rows(csv, actions)
        return self._read

    def _passed(self, actions: Sequence[Callable[[Prediction], object]]) -> Iterator[Prediction]:
        for prediction in self:
            for action in actions:
                action(prediction)
            yield prediction

    def _write_rows(self, file: TextIO, actions: Sequence[Callable[[Prediction], object]]) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(harmless_cell, (*_FIXED, *self.labels)))
        for one in self._passed(actions):
            values = one.probabilities.numpy()  # of these, str is the shortest text that reads back as the same float32
            writer.writerow((harmless_cell(one.name), harmless_cell(one.label), values[one.index], *values))

    def to_csv(self, path: str | os.PathLike[str] | TextIO) -> int:
        """Write every class's probability for each image, row by row; see :meth:`write`."""
        return self.write(path)

    def copy_to(self, folder: str | os.PathLike[str]) -> int:
        """Copy each image's file into a folder of its predicted class; see :meth:`write`."""
        return self.write(copy_to=folder)

    def __repr__(self) -> str:
        return f"<Predictions: {self._read} images read, {len(self._bad)} bad>"

    def _repr_html_(self) -> str:
        """The first predictions as a small table."""
        first = list(islice(self, _SHOWN + 1))
        rows = [(one.name, one.label, f"{one.probability:.1%}") for one in first[:_SHOWN]]
        notes = [f"the first {_SHOWN}; more are computed when they are read"] if len(first) > _SHOWN else []
        notes += [f"{len(self._bad)} images could not be predicted: .bad names them"] if self._bad else []
        notes += [] if self.named else ["the model carries no class names, so classes are numbers"]
        return html_table(("image", "prediction", "probability"), rows, right=(2,)) + html_lines("", ["; ".join(notes)])
