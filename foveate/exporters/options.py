"""What is asked of an export, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
        keep: what int8 leaves in more bits: "none"; "attention", the input and output of every attention module;
            "auto", those only of modules that would lose what they do, where that changes predictions.
        softmax: an output "probabilities" (B, K) beside the logits.
        python: the interpreter of the environment that converts, for formats whose packages need one of their own.
        top: outputs "top_probabilities" and "top_classes" (B, top), the largest first; 0 for none.

    Raises:
        FoveateError: a value is not one of these.
    """

    precision: str = "fp32"
    maps: tuple[str, ...] = ()
    input: str = "float"
    batch: Batch = "dynamic"
    size: Size = None
    keep: str = "auto"
    softmax: bool = False
    top: int = 0
    python: str | None = None

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("input", self.input, INPUTS)
        _one_of("keep", self.keep, KEEPS)
        for name in self.maps:
            _one_of("maps", name, MAPS)
        object.__setattr__(self, "maps", tuple(dict.fromkeys(self.maps)))
        if self.batch != "dynamic" and not _is_positive(self.batch):
            raise FoveateError(f"batch={self.batch!r}: give 'dynamic' or how many images the file takes, 1 or more")
        sides = list(self.size) if isinstance(self.size, tuple | list) else [self.size]
        if self.size not in (None, "dynamic") and (len(sides) > 2 or not all(map(_is_positive, sides))):
            raise FoveateError(
                f"size={self.size!r}: give a side in pixels, (height, width), or 'dynamic' for images of any size"
            )
        if isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 0:
            raise FoveateError(f"top={self.top!r}: give how many classes the file names, 0 for none")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
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
