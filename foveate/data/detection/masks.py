"""Masks of objects: which pixels of an image belong to each, kept as COCO's run lengths.

Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, https://cocodataset.org/#format-data: polygons
[x1, y1, x2, y2, ...], or the lengths of alternating runs of pixels outside and inside, column by column. The package
faster-coco-eval rasterises, encodes and decodes, by the same rules as pycocotools.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError

__all__ = ["InstanceMasks", "can_read_masks", "parse_mask", "require_masks"]

_PACKAGE = "faster_coco_eval"
_POINTS = 3  # of a polygon at least
_ROUNDING = 1.0  # pixels by which a polygon may leave its image: it was rounded


def can_read_masks() -> bool:
    """Whether the package is there that reads masks."""
    return importlib.util.find_spec(_PACKAGE) is not None


def require_masks() -> None:
    """Make sure that masks can be written and read.

    Raises:
        FoveateError: the package is not installed.
    """
    if not can_read_masks():
        raise FoveateError("masks need the package faster-coco-eval: pip install 'foveate[detection]'")


def _coco() -> Any:  # the package has no types
    return importlib.import_module(f"{_PACKAGE}.core.mask")


@dataclass(frozen=True, eq=False)
class InstanceMasks:
    """The masks of the objects of one image.

    Args:
        size: height and width of the image.
        runs: of each object its mask as COCO's compressed run lengths; None where it is not known.
    """

    size: tuple[int, int]
    runs: tuple[bytes | None, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the mask of each object is known."""
        return np.array([run is not None for run in self.runs], np.bool_)

    @classmethod
    def of(cls, masks: npt.NDArray[Any]) -> InstanceMasks:
        """Encode masks.

        Args:
            masks: (n, H, W), not 0 where a pixel belongs to the object.
        """
        found = _coco().encode(np.asfortranarray(masks.transpose(1, 2, 0) != 0, np.uint8)) if len(masks) else []
        return cls((masks.shape[1], masks.shape[2]), tuple(bytes(one["counts"]) for one in found))

    def array(self) -> npt.NDArray[np.uint8]:
        """(n, H, W), 1 where a pixel belongs to the object; 0 everywhere where its mask is not known."""
        found = np.zeros((len(self), *self.size), np.uint8)
        known = [n for n, run in enumerate(self.runs) if run is not None]
        if known:
            found[known] = _coco().decode([self._coded(n) for n in known]).transpose(2, 0, 1)
        return found

    def areas(self) -> list[int]:
        """Pixels of each object; 0 where its mask is not known."""
        return [0 if run is None else int(_coco().area(self._coded(n))) for n, run in enumerate(self.runs)]

    def subset(self, indices: Sequence[int]) -> InstanceMasks:
        """The masks at these positions, in this order."""
        return InstanceMasks(self.size, tuple(self.runs[index] for index in indices))

    def to_coco(self) -> list[dict[str, Any] | None]:
        """Each as it stands in a COCO file, compressed run lengths; None where it is not known."""
        size = list(self.size)
        return [None if run is None else {"size": size, "counts": run.decode("ascii")} for run in self.runs]

    def _coded(self, index: int) -> dict[str, Any]:
        return {"size": list(self.size), "counts": self.runs[index]}


def parse_mask(
    segmentation: object, size: tuple[int, int], box: Sequence[float]
) -> tuple[bytes | None, tuple[str, ...]]:
    """One mask as an annotation file tells it.

    Args:
        segmentation: a list of polygons, or run lengths: a dictionary with ``size`` and ``counts``. None or an empty
            list stands for no mask.
        size: height and width of the image.
        box: left, top, right and bottom of the object.

    Returns:
        Its run lengths, or None where there is none that can be used; and what is wrong with it, one text for each
        fault. Polygons that leave the image are cut off at its edge, one with fewer than three points is left out.
    """
    if segmentation is None or segmentation == []:
        return None, ()
    if isinstance(segmentation, list):
        runs, faults = _of_polygons(segmentation, size)
    elif isinstance(segmentation, dict):
        runs, faults = _of_runs(segmentation, size)
    else:
        runs, faults = None, ["is neither a list of polygons nor run lengths"]
    if runs is None:
        return None, tuple(faults)
    if not int(_coco().area(runs)):
        return None, (*faults, f"has no pixel in the image of {size[1]}x{size[0]} pixels")
    left, top, width, height = _coco().toBbox([runs])[0].tolist()
    apart = max(left - box[2], box[0] - left - width, top - box[3], box[1] - top - height)
    if apart > _ROUNDING:
        return None, (*faults, "lies outside the object's box")
    return bytes(runs["counts"]), tuple(faults)


def _of_polygons(polygons: list[Any], size: tuple[int, int]) -> tuple[dict[str, Any] | None, list[str]]:
    height, width = size
    good, faults = [], []
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(type(x) in (int, float) and _finite(x) for x in polygon)
        if not numbers or len(polygon) % 2:
            faults.append("has a polygon that is not a list of x, y, x, y, ...")
            continue
        if len(polygon) < 2 * _POINTS:
            faults.append(f"has a polygon with {len(polygon) // 2} points, and {_POINTS} are the least")
            continue
        sides = ((polygon[0::2], width), (polygon[1::2], height))
        beyond = max(max(-min(values), max(values) - side) for values, side in sides)
        # The rasteriser's memory grows with the length of an edge, wherever it lies.
        if any(-min(values) > side or max(values) > 2 * side for values, side in sides):
            faults.append(f"has a polygon far outside the image of {width}x{height} pixels")
            continue
        if beyond > _ROUNDING:
            faults.append(f"leaves the image of {width}x{height} pixels")
        good.append([float(value) for value in polygon])
    if not good:
        return None, faults
    return _coco().merge(_coco().frPyObjects(good, height, width)), faults


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that is no float
        return False


def _of_runs(segmentation: dict[str, Any], size: tuple[int, int]) -> tuple[dict[str, Any] | None, list[str]]:
    height, width = size
    stated, counts = segmentation.get("size"), segmentation.get("counts")
    if stated != [height, width]:
        shown = "x".join(map(str, reversed(stated))) if isinstance(stated, list) and len(stated) == 2 else repr(stated)
        return None, [f"is of an image of {shown[:40]} pixels, and this one has {width}x{height}"]
    given = _lengths(counts) if isinstance(counts, str) else counts
    # The decoder's own error would come in mid-epoch.
    lengths = given if isinstance(given, list) and all(type(one) is int and one >= 0 for one in given) else None
    if lengths is None or sum(lengths) != height * width:
        covered = "no number of" if lengths is None else sum(lengths)
        return None, [f"has run lengths of {covered} pixels, and the image has {height * width}"]
    return _coco().frPyObjects({"size": [height, width], "counts": lengths}, height, width), []


def _lengths(text: str) -> list[int] | None:
    """The run lengths in COCO's compressed text; None where it is none.

    Each number has 5 bits in a character, the lowest first, from "0" on; a 6th bit says that more follow. From the
    fourth number on it is the difference to the last but one.
    """
    numbers: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
        value = shift = 0
    return None if shift else numbers
