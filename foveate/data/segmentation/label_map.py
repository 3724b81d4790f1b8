"""One label map: a file with a number for every pixel, and the classes that the numbers stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError
from foveate.image_formats import image_header, is_turned

__all__ = ["IGNORE", "MAP_SUFFIXES", "UNKNOWN", "image_size", "read_classes", "read_values"]

IGNORE = 255
"""What stands in a map of classes where a pixel counts neither in the loss nor in a metric."""

UNKNOWN = -1
MAP_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")  # what stores numbers exactly


def image_size(path: str) -> tuple[int, int]:
    """Height and width of an image as it is shown, from the first bytes of its file.

    Raises:
        FoveateError: it is not an image, or has too many pixels.
    """
    with image_header(path) as image:
        width, height = image.size
        return (width, height) if is_turned(image) else (height, width)


def read_values(path: str) -> npt.NDArray[np.uint8]:
    """The numbers in a label map, (H, W).

    Raises:
        FoveateError: it cannot be read, has too many pixels, holds colours, or a number above 255.
    """
    if not path.lower().endswith(MAP_SUFFIXES):
        raise FoveateError(
            f"{path}: a label map is a PNG with one number for each pixel; what {Path(path).suffix or 'no suffix'} "
            "stores may not be the numbers that were written"
        )
    if not Path(path).exists():
        raise FoveateError(f"no label map {path}")
    with image_header(path, name=f"the label map {path}") as image:
        image.load()
        mode, values = image.mode, np.asarray(image)
    if values.ndim != 2:
        raise FoveateError(
            f"the label map {path} holds colours (mode {mode}): it needs one number for each pixel, grey or a palette"
        )
    if values.dtype != np.uint8 and (values.max(initial=0) > 255 or values.min(initial=0) < 0):
        raise FoveateError(f"the label map {path} holds the number {values.max()}: 0 to 255 are read")
    return values.astype(np.uint8)


def read_classes(path: str, table: tuple[int, ...], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The class of each pixel, (H, W), ``IGNORE`` where it does not count.

    Args:
        path: of the label map.
        table: for each of 256 numbers the class, ``IGNORE`` or ``UNKNOWN``.
        size: height and width of the image that it belongs to.

    Raises:
        FoveateError: it cannot be read, has another size, or holds a number that stands for no class.
    """
    values = read_values(path)
    if values.shape != size:
        raise FoveateError(
            f"the label map {path} is {values.shape[1]}x{values.shape[0]} pixels and its image {size[1]}x{size[0]}: "
            "make it anew for this image"
        )
    classes = np.asarray(table, np.int16)[values]
    unknown = classes == UNKNOWN
    if unknown.any():
        numbers, counts = np.unique(values[unknown], return_counts=True)
        known = sum(entry not in (IGNORE, UNKNOWN) for entry in table)
        raise FoveateError(
            f"the label map {path} holds the number {numbers[0]} in {counts[0]} pixels, which is none of the {known} "
            f"classes: correct it, or pass ignore=({numbers[0]},) to open_segmentation"
        )
    return classes.astype(np.uint8)
