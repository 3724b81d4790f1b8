"""One label map: a file with a number for every pixel, and the classes that the numbers stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from foveate.data.sources import Row
from foveate.errors import FoveateError
from foveate.image_formats import image_header, is_turned

__all__ = ["IGNORE", "MAP_SUFFIXES", "UNKNOWN", "Source", "content_of", "image_size", "read_classes", "read_values"]

Source = str | bytes | Row
"""A path, encoded bytes, or the row of another library's data set that gives one of them."""

IGNORE = 255
"""What stands in a map of classes where a pixel counts neither in the loss nor in a metric."""

UNKNOWN = -1
MAP_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")  # what stores numbers exactly
_FORMATS = ("PNG", "BMP", "TIFF", "GIF")
_STEPS = {"L;2": 255 // 3, "L;4": 255 // 15}


def content_of(source: Source) -> str | bytes:
    """The path or the encoded bytes.

    Raises:
        FoveateError: another library fails, or gives something else.
    """
    if not isinstance(source, Row):
        return source
    found = source.read()
    if not isinstance(found, str | bytes):
        raise FoveateError(f"row {source.index} gives {type(found).__name__}, not an encoded image")
    return found


def image_size(source: Source, name: str | None = None) -> tuple[int, int]:
    """Height and width of an image as it is shown, from the first bytes of its file.

    Args:
        source: its path, its encoded bytes, or the row of another library's data set that gives one of them.
        name: what errors call it; by default the path.

    Raises:
        FoveateError: it is not an image, or has too many pixels.
    """
    with image_header(content_of(source), name=name) as image:
        width, height = image.size
        return (width, height) if is_turned(image) else (height, width)


def read_values(source: Source, name: str | None = None) -> npt.NDArray[np.uint8]:
    """The numbers in a label map, (H, W).

    Args:
        source: as in ``image_size``.
        name: as there.

    Raises:
        FoveateError: it cannot be read, has too many pixels, holds colours, or a number above 255.
    """
    content = content_of(source)
    name = name or str(source)
    if isinstance(content, str) and not content.lower().endswith(MAP_SUFFIXES):
        raise _not_exact(name, Path(content).suffix or "no suffix")
    if isinstance(content, str) and not Path(content).exists():
        raise FoveateError(f"no label map {name}")
    with image_header(content, name=f"the label map {name}") as image:
        if not isinstance(content, str) and image.format not in _FORMATS:
            raise _not_exact(name, str(image.format))
        step = _step(image)
        image.load()
        mode, values = image.mode, np.asarray(image)
    if values.ndim != 2:
        raise FoveateError(
            f"the label map {name} holds colours (mode {mode}): it needs one number for each pixel, grey or a palette"
        )
    if values.dtype != np.uint8 and (values.max(initial=0) > 255 or values.min(initial=0) < 0):
        raise FoveateError(f"the label map {name} holds the number {values.max()}: 0 to 255 are read")
    return values.astype(np.uint8) // np.uint8(step)


def _step(image: Image.Image) -> int:
    """By how much two neighbouring numbers of an image that is not decoded yet differ when it is.

    Pillow stretches grey of 2 and 4 bits to 0 to 255.
    """
    tiles = getattr(image, "tile", ())  # which only an image of a file has
    arguments = tiles[0][3] if tiles else ()
    stored = arguments if isinstance(arguments, str) else next(iter(arguments), "")
    return next((step for bits, step in _STEPS.items() if str(stored).startswith(bits)), 1)


def _not_exact(name: str, kind: str) -> FoveateError:
    return FoveateError(
        f"{name}: a label map is a PNG with one number for each pixel; what {kind} stores may not be the numbers that "
        "were written"
    )


def read_classes(
    source: Source, table: tuple[int, ...], size: tuple[int, int], name: str | None = None
) -> npt.NDArray[np.uint8]:
    """The class of each pixel, (H, W), ``IGNORE`` where it does not count.

    Args:
        source: the label map, as in ``image_size``.
        table: for each of 256 numbers the class, ``IGNORE`` or ``UNKNOWN``.
        size: height and width of the image that it belongs to.
        name: as in ``image_size``.

    Raises:
        FoveateError: it cannot be read, has another size, or holds a number that stands for no class.
    """
    values = read_values(source, name)
    name = name or str(source)
    if values.shape != size:
        raise FoveateError(
            f"the label map {name} is {values.shape[1]}x{values.shape[0]} pixels and its image {size[1]}x{size[0]}: "
            "make it anew for this image"
        )
    classes = np.asarray(table, np.int16)[values]
    unknown = classes == UNKNOWN
    if unknown.any():
        numbers, counts = np.unique(values[unknown], return_counts=True)
        known = sum(entry not in (IGNORE, UNKNOWN) for entry in table)
        raise FoveateError(
            f"the label map {name} holds the number {numbers[0]} in {counts[0]} pixels, which is none of the {known} "
            f"classes: correct it, or pass ignore=({numbers[0]},) to open_segmentation"
        )
    return classes.astype(np.uint8)
