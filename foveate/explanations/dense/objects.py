"""What a detector found in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["ImageObjects", "object_arrays"]


@dataclass(frozen=True, eq=False)
class ImageObjects:
    """What a detector found in one image, the highest score first.

    Attributes:
        boxes: (n, 4) left, top, right and bottom in pixels of the image as the network saw it.
        scores: (n,), 0 to 1.
        classes: (n,) int64.
        explained: the indices of those whose scores a map explains.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    explained: tuple[int, ...] = ()


def object_arrays(objects: Sequence[ImageObjects]) -> dict[str, Any]:
    """The objects of all images in a row, as NumPy arrays: boxes, scores, classes, the image's number, explained."""
    counts = [len(one.scores) for one in objects]
    explained = [n in one.explained for one in objects for n in range(len(one.scores))]
    return {
        "boxes": np.concatenate([one.boxes.numpy() for one in objects]),
        "box scores": np.concatenate([one.scores.numpy() for one in objects]),
        "box classes": np.concatenate([one.classes.numpy() for one in objects]),
        "box images": np.repeat(np.arange(len(objects)), counts),
        "explained": np.array(explained, dtype=bool),
    }
