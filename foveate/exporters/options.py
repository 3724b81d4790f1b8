"""What is asked of an export, checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foveate.arguments import whole_number
from foveate.errors import FoveateError, near

__all__ = ["INPUTS", "KEEPS", "MAPS", "PRECISIONS", "Batch", "ExportOptions", "Size", "refuse_asked"]

Batch = int | Literal["dynamic"]
Size = int | tuple[int, int] | Literal["dynamic"] | None

PRECISIONS = ("fp32", "fp16", "int8")
INPUTS = ("float", "uint8")
MAPS = ("attention", "cam")
KEEPS = ("auto", "none", "attention")


@dataclass(frozen=True)
class ExportOptions:
    """What the exported network takes, gives and computes with.

    Args:
        precision: "fp32", "fp16", or "int8" (8 bit weights and activations, calibrated on images).
        maps: more outputs: "attention", the own map of each attention module; "cam", the class activation map of the
            class with the largest logit.
        input: "float": normalised float32 (B, C, H, W). "uint8": the pixels as they are, uint8 (B, H, W, C); the
            normalisation is a part of the file.
        batch: "dynamic", or the one number of images that the file takes.
        size: side of a square input in pixels, (height, width), or "dynamic" for any size; None for the model's own.
            Lists and whole numbers of numpy's are kept as tuples and Python's numbers, and so for the others.
        keep: what int8 leaves in more bits: "none"; "attention", the input and output of every attention module;
            "auto", those only of modules that would lose what they do, where that changes predictions.
        softmax: an output "probabilities" (B, K) beside the logits.
        python: the interpreter of the environment that converts, for formats whose packages need one of their own.
        top: outputs "top_probabilities" and "top_classes" (B, top), the largest first; 0 for none.

    Raises:
        FoveateError: a value is not one of these.
    """

    precision: str = "fp32"
    maps: Sequence[str] | str = ()
    input: str = "float"
    batch: Batch = "dynamic"
    size: Size = None
    keep: str = "auto"
    softmax: bool = False
    top: int = 0
    python: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("input", self.input, INPUTS)
        _one_of("keep", self.keep, KEEPS)
        if not isinstance(self.maps, Iterable):
            raise FoveateError(f"maps={self.maps!r}: give the names of more outputs, of {', '.join(MAPS)}, or ()")
        maps = (self.maps,) if isinstance(self.maps, str) else tuple(self.maps)
        for name in maps:
            _one_of("maps", name, MAPS)
        object.__setattr__(self, "maps", tuple(dict.fromkeys(maps)))
        if not _is(self.batch, "dynamic"):
            batch = _positive(self.batch)
            if batch is None:
                raise FoveateError(f"batch={self.batch!r}: give 'dynamic' or how many images the file takes, 1 or more")
            object.__setattr__(self, "batch", batch)
        if self.size is not None and not _is(self.size, "dynamic"):
            object.__setattr__(self, "size", _checked_size(self.size))
        top = whole_number(self.top)
        if top is None or top < 0:
            raise FoveateError(f"top={self.top!r}: give how many classes the file names, 0 for none")
        object.__setattr__(self, "top", top)
        if not isinstance(self.python, str | os.PathLike | None):
            raise FoveateError(f"python={self.python!r}: give the path of an interpreter")
        object.__setattr__(self, "python", None if self.python is None else os.fspath(self.python))


def _is(value: object, word: str) -> bool:
    """Whether it is this word; an array, which compares each of its elements, is not."""
    return isinstance(value, str) and value == word


def _positive(value: object) -> int | None:
    number = whole_number(value)
    return number if number is not None and number >= 1 else None


def _checked_size(size: Any) -> int | tuple[int, int]:
    """One side, or two as a tuple, whatever sequence of whole numbers they come in."""
    given = size.tolist() if hasattr(size, "tolist") else size
    asked = given if isinstance(given, tuple | list) else [given]
    sides = [side for side in map(_positive, asked) if side is not None]
    if len(asked) not in (1, 2) or len(sides) < len(asked):
        raise FoveateError(
            f"size={size!r}: give a side in pixels, (height, width), or 'dynamic' for images of any size"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise FoveateError(f"{name}={value!r} is not known; {near(str(value), known)}")


def refuse_asked(asked: Mapping[str, bool], why: str) -> None:
    """Refuse the first option that was asked for and that such a file does not have.

    Args:
        asked: an option as it is written -> whether it was given.
        why: what is said after it.

    Raises:
        FoveateError: one was given.
    """
    for name, given in asked.items():
        if given:
            raise FoveateError(f"{name} {why}")
