"""The classes of pixels in colour over a picture, or boxes in it, with a legend of the classes that are there."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from foveate.errors import printable
from foveate.explanations.overlay import CELL, GAP, font

__all__ = ["IGNORED", "draw_boxes", "draw_classes", "legend", "palette", "with_classes"]

IGNORED = 255  # the number of a pixel that does not count; it stays as it is
_GOLDEN = 0.618033988749895  # steps of the hue by it come nowhere near an earlier one
_OPACITY = 0.55
_LETTER, _GAP = 13, 6  # pixels


def palette(classes: int) -> list[int]:
    """Red, green and blue of each class, 0 to 255, in a row: far apart for classes that follow each other."""
    rows = ((n * _GOLDEN % 1, 0.9 - 0.35 * (n // 7 % 2), 1 - 0.3 * (n // 14 % 3)) for n in range(classes))
    colours = [colorsys.hsv_to_rgb(*row) for row in rows]
    return [round(255 * value) for colour in colours for value in colour]


def draw_classes(picture: Image.Image, classes: Tensor, opacity: float = _OPACITY) -> Image.Image:
    """A picture in grey with each pixel's class in colour over it; pixels that do not count stay grey.

    Args:
        picture: of any size; the classes are enlarged or shrunk to it.
        classes: (h, w) whole numbers, 0 to 254, or 255 where a pixel does not count.
        opacity: of the colours, 0 to 1.
    """
    numbers = Image.fromarray(np.asarray(classes.cpu(), dtype=np.uint8))
    chosen = np.asarray(numbers.resize(picture.size, Image.Resampling.NEAREST))
    table = np.array(palette(256), dtype=np.float64).reshape(256, 3)
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None].repeat(3, 2)
    mixed = np.where((chosen == IGNORED)[..., None], grey, opacity * table[chosen] + (1 - opacity) * grey)
    return Image.fromarray(mixed.round().astype(np.uint8))


def draw_boxes(picture: Image.Image, boxes: Tensor, classes: Tensor) -> Image.Image:
    """A copy of a picture with boxes in the colours of their classes, those of the highest scores on top.

    Args:
        picture: of any size.
        boxes: (n, 4) left, top, right, bottom in pixels of the picture, the highest score first.
        classes: (n,) whole numbers, 0 to 255.
    """
    drawn, colours = picture.convert("RGB"), palette(256)
    drawn = drawn.copy() if drawn is picture else drawn
    pen, width = ImageDraw.Draw(drawn), max(1, round(min(picture.size) / 200))
    for box, label in reversed(list(zip(boxes.tolist(), classes.tolist(), strict=True))):
        red, green, blue = colours[3 * label : 3 * label + 3]
        pen.rectangle([round(side) for side in box], outline=(red, green, blue), width=width)
    return drawn


def legend(present: Sequence[int], names: Sequence[str], width: int) -> Image.Image:
    """A square in its colour and the name of each class, in rows ``width`` pixels wide.

    Args:
        present: the classes to be named.
        names: of all classes.
        width: in pixels; a longer name gets a row of its own and is cut off at its end.
    """
    letters, colours = font(_LETTER), palette(256)
    places, x, y, step = [], 0, 0, _LETTER + _GAP
    for label in present:
        text = printable(names[label]) if label < len(names) else str(label)
        wide = _LETTER + _GAP + round(letters.getlength(text)) + 2 * _GAP
        if x and x + wide > width:
            x, y = 0, y + step
        places.append((x, y, label, text))
        x += wide
    block = Image.new("RGB", (width, y + step if places else 1), "white")
    pen = ImageDraw.Draw(block)
    for left, top, label, text in places:
        red, green, blue = colours[3 * label : 3 * label + 3]
        pen.rectangle((left, top, left + _LETTER - 1, top + _LETTER - 1), fill=(red, green, blue), outline="black")
        pen.text((left + _LETTER + _GAP, top + _LETTER / 2), text, "black", letters, "lm")
    return block


def with_classes(sheet: Image.Image, picture: Image.Image, classes: Tensor, names: Sequence[str]) -> Image.Image:
    """A sheet with one more row: the picture with its classes in colour, and the legend.

    Args:
        sheet: what stands above.
        picture: the image.
        classes: (h, w) of its pixels.
        names: of all classes.
    """
    width = min(max(picture.width, CELL[0]), CELL[1])
    larger = picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.BICUBIC)
    drawn = draw_classes(larger, classes)
    names_below = legend(sorted(set(classes.flatten().tolist()) - {IGNORED}), names, sheet.width - 2 * GAP)
    more = Image.new("RGB", (sheet.width, sheet.height + drawn.height + names_below.height + 2 * GAP), "white")
    more.paste(sheet, (0, 0))
    more.paste(drawn, (GAP, sheet.height))
    more.paste(names_below, (GAP, sheet.height + drawn.height + GAP // 2))
    return more
