"""The classes of pixels in colour over a picture, or boxes in it, with a legend of the classes that are there."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from foveate.errors import printable
from foveate.explanations.dense.objects import ImageObjects
from foveate.explanations.overlay import CELL, GAP, font

__all__ = ["IGNORED", "SURE", "draw_boxes", "draw_classes", "labelled", "legend", "objects_in", "palette", "under"]

SURE = 0.5  # the least score of a box that is shown
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


def draw_masks(
    picture: Image.Image, masks: npt.NDArray[np.uint8], classes: Tensor, opacity: float = _OPACITY
) -> Image.Image:
    """A copy of a picture with masks in the colours of their classes, those of the highest scores on top.

    Args:
        picture: of the size of the masks.
        masks: (n, H, W), not 0 where a pixel belongs to the object, the highest score first.
        classes: (n,) whole numbers, 0 to 255.
        opacity: of the colours, 0 to 1.
    """
    drawn = np.asarray(picture.convert("RGB"), dtype=np.float64)
    chosen = np.full(drawn.shape[:2], -1)
    for mask, label in reversed(list(zip(masks, classes.tolist(), strict=True))):
        chosen[mask != 0] = label
    table = np.array(palette(256), dtype=np.float64).reshape(256, 3)
    mixed = np.where((chosen < 0)[..., None], drawn, opacity * table[chosen] + (1 - opacity) * drawn)
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


def labelled(picture: Image.Image, classes: Tensor, names: Sequence[str]) -> Image.Image:
    """A picture with the class of each pixel in colour, and a legend below it.

    Args:
        picture: the image.
        classes: (h, w) of its pixels.
        names: of all classes.
    """
    drawn = draw_classes(_sized(picture), classes)
    return _over(drawn, legend(sorted(set(classes.flatten().tolist()) - {IGNORED}), names, drawn.width))


def objects_in(picture: Image.Image, objects: ImageObjects, names: Sequence[str], sure: float = SURE) -> Image.Image:
    """A picture with boxes in the colours of their classes, each with its number, and a legend below it.

    Args:
        picture: the image.
        objects: what was found in it.
        names: of all classes.
        sure: the least score of a box that is shown, unless it is explained.
    """
    shown = [n for n, score in enumerate(objects.scores.tolist()) if score >= sure or n in objects.explained]
    large = _sized(picture)
    boxes, classes = objects.boxes[shown] * (large.width / picture.width), objects.classes[shown]
    drawn, letters, colours = draw_boxes(large, boxes, classes), font(_LETTER), palette(256)
    pen = ImageDraw.Draw(drawn)
    for number, box, label in reversed(list(zip(shown, boxes.tolist(), classes.tolist(), strict=True))):
        text, (left, top) = str(number + 1), (round(side) for side in box[:2])
        wide = round(letters.getlength(text)) + 4
        left, top = max(0, min(left, drawn.width - wide)), max(0, min(top, drawn.height - _LETTER - 2))
        red, green, blue = colours[3 * label : 3 * label + 3]
        pen.rectangle((left, top, left + wide, top + _LETTER + 1), fill=(red, green, blue))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        pen.text((left + 2, top + _LETTER / 2 + 1), text, "black" if bright else "white", letters, "lm")
    counts = Counter(classes.tolist())
    texts = {label: f"{_name(names, label)} ({count})" for label, count in counts.items()}
    known = [texts.get(label, "") for label in range(max(counts, default=-1) + 1)]
    if not shown:
        none = Image.new("RGB", (drawn.width, _LETTER + _GAP), "white")
        ImageDraw.Draw(none).text((0, 0), f"nothing with a score of {sure:g} or more", "black", letters)
        return _over(drawn, none)
    return _over(drawn, legend(sorted(counts), known, drawn.width))


def under(sheet: Image.Image, picture: Image.Image) -> Image.Image:
    """A sheet with one more row: a picture."""
    more = Image.new("RGB", (max(sheet.width, picture.width + 2 * GAP), sheet.height + picture.height + GAP), "white")
    more.paste(sheet, (0, 0))
    more.paste(picture, (GAP, sheet.height))
    return more


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def _sized(picture: Image.Image) -> Image.Image:
    """As large as it is beside maps."""
    width = min(max(picture.width, CELL[0]), CELL[1])
    height = round(width * picture.height / picture.width)
    return picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def _over(drawn: Image.Image, below: Image.Image) -> Image.Image:
    both = Image.new("RGB", (drawn.width, drawn.height + below.height + GAP // 2), "white")
    both.paste(drawn, (0, 0))
    both.paste(below, (0, drawn.height + GAP // 2))
    return both
