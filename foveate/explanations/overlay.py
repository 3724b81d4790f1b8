"""One drawing: a picture, each map laid over it with its true scale, channel weights as bars.

Each map is drawn over its own range of values, and the range is written under it: the maps of a softmax are tiny in
value, so they are given in units of the uniform value 1/hw as well. A map that is constant is drawn so: below a
relative range of ``FLAT`` it is not stretched over the colours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CELL", "FLAT", "GAP", "MOST", "Panel", "colours", "draw", "font", "is_uniform", "picture_of", "scale_words"]

FLAT = 1e-3  # (max - min) / max(|min|, |max|) below which a map counts as uniform
COLOURS = "inferno"  # perceptually uniform
UNIFORM = 0.6  # the grey of a map that is constant: no colour, since it prefers no position
OPACITY = 0.6
COLUMNS = 5
MOST = 16  # maps drawn of one site: those that vary most; all are in the numbers
# In pixels: the least and the most width of a cell, the space between cells, the letters of titles and of legends.
CELL, GAP, TITLE, LEGEND = (280, 400), 14, 15, 13
LINE = 1.3  # height of a line of text, in letters
Mark = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, eq=False)
class Panel:
    """One map as it is drawn.

    Args:
        name: its title, and behind a comma what is to be known of it.
        values: (h, w).
        group: the module that it belongs to; a module with several maps has rows of its own.
        of: the class that it is of; "" for a map that does not depend on a class.
        softmax: the map sums to 1, so that its values have a unit: the uniform value 1/hw.
    """

    name: str
    values: Tensor
    group: str
    of: str = ""
    softmax: bool = False


def draw(
    picture: Image.Image,
    caption: Sequence[str],
    panels: Sequence[Panel],
    channels: Sequence[tuple[str, Tensor]] = (),
    *,
    smooth: bool = True,
    mark: Mark = lambda picture: picture,
) -> Image.Image:
    """Draw a picture, maps over it, and channel weights below.

    Args:
        picture: what the network saw.
        caption: lines above the picture.
        panels: the maps.
        channels: names and channel weights, each (c,).
        smooth: as in ``colours``.
        mark: draws on the picture and on each map over it, as boxes.

    Returns:
        An RGB picture. Its size depends on the number of maps.
    """
    picture = picture.convert("RGB")
    width = min(max(picture.width, CELL[0]), CELL[1])
    picture = picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.BICUBIC)
    cells, note = _grid(panels)
    blocks = [_row(picture, caption, cell_row, mark, smooth=smooth) for cell_row in cells]
    across = max([block.width for block in blocks] + [3 * width if channels else 0])
    blocks += [_bars(name, weights, across) for name, weights in channels]
    if note:
        blocks.insert(0, _text(_wrap(note, across, TITLE), across, TITLE))
    sheet = Image.new("RGB", (across + 2 * GAP, sum(block.height + GAP for block in blocks) + GAP), "white")
    top = GAP
    for block in blocks:
        sheet.paste(block, (GAP, top))
        top += block.height + GAP
    return sheet


def _grid(panels: Sequence[Panel]) -> tuple[list[list[Panel | None]], str]:
    """Rows of cells, and a note on what was left out.

    None is the picture itself. A module with several maps has rows of its own, the others share.
    """
    modules: dict[str, list[Panel]] = {}
    for panel in panels:
        modules.setdefault(panel.group, []).append(panel)
    groups = [_most_varied(group) for group in modules.values() if len(group) > 1]
    groups += [[group[0] for group in modules.values() if len(group) == 1]]
    shown, note = sum(map(len, groups)), ""
    if shown < len(panels):
        note = f"{shown} of {len(panels)} maps are drawn: for each site the {MOST} that vary most in this image"
    most = COLUMNS - 1
    rows = [[None, *group[start : start + most]] for group in groups for start in range(0, len(group), most)]
    return rows or [[None]], note


def _most_varied(group: list[Panel]) -> list[Panel]:
    def range_of(panel: Panel) -> float:
        return float(panel.values.max() - panel.values.min())

    chosen = sorted(group, key=range_of, reverse=True)[:MOST]
    return [panel for panel in group if any(panel is one for one in chosen)]


def is_uniform(values: Tensor) -> bool:
    """Whether a map, (h, w), is constant: its relative range is at most ``FLAT``."""
    low, high = float(values.min()), float(values.max())
    return high - low <= FLAT * max(abs(low), abs(high))


def scale_words(values: Tensor, *, softmax: bool) -> tuple[str, str]:
    """What is written under a map: its smallest and its largest value.

    Args:
        values: (h, w).
        softmax: the map sums to 1, so that its values have a unit: the uniform value 1/hw.

    Returns:
        The words for the low and the high end; for a uniform map its value and "uniform".
    """
    low, high = float(values.min()), float(values.max())
    if is_uniform(values):
        return ("all zero" if high == 0 else f"{high:.3g} everywhere", "uniform")
    tiny = 1e-6 * max(abs(low), abs(high))
    numbers = ["≈0" if 0 < abs(value) < tiny else f"{value:.3g}" for value in (low, high)]
    words = [f"min {numbers[0]}", f"max {numbers[1]}"]
    if softmax:
        count = values.numel()
        words = [f"{word}\n{_times(value * count)}× uniform" for word, value in zip(words, (low, high), strict=True)]
    return words[0], words[1]


def _times(ratio: float) -> str:
    if ratio < 0.01:
        return "<0.01"
    # Near 1 the digits that differ from 1 are what matters.
    return f"{ratio:.3f}" if 0.9 < ratio < 1.1 else f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def colours(
    picture: Image.Image, values: Tensor, opacity: float = OPACITY, *, smooth: bool = True
) -> NDArray[np.floating]:
    """Lay a map over a picture.

    The map is enlarged with its cells' corners on the picture's corners (half-pixel centres), and its colours are mixed
    with the picture in grey, so that colour means the map alone.

    Args:
        picture: H x W pixels.
        values: (h, w).
        opacity: of the map, 0 to 1.
        smooth: enlarge it bilinearly; else each value is a cell of one colour, as the network has it.

    Returns:
        (H, W, 3) in 0..1. A uniform map is an even grey.
    """
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None] / 255
    if is_uniform(values):
        coloured = np.full((*grey.shape[:2], 3), UNIFORM)
    else:
        unit = (values - values.min()) / (values.max() - values.min())
        size = (picture.height, picture.width)
        if smooth:
            large = F.interpolate(unit[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        else:
            large = F.interpolate(unit[None, None], size, mode="nearest-exact")[0, 0]
        coloured = mpl.colormaps[COLOURS](large.clamp(0, 1).numpy())[..., :3]
    mixed: NDArray[np.floating] = opacity * coloured + (1 - opacity) * grey
    return mixed


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Letters of this height in pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", name), size)


def _wrap(text: str, width: int, size: int, bold: bool = False) -> list[str]:
    """Break a text into lines that are at most ``width`` pixels wide: between words, or inside a word that is wider."""
    letters, lines = font(size, bold), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if letters.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if letters.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _text(lines: Sequence[str], width: int, size: int, *, side: str = "middle", bold: bool = False) -> Image.Image:
    """Lines of text on white, ``width`` pixels wide; side is "left", "middle" or "right"."""
    step = round(LINE * size)
    block = Image.new("RGB", (width, step * len(lines)), "white")
    pen, (x, anchor) = (
        ImageDraw.Draw(block),
        {"left": (0, "l"), "middle": (width // 2, "m"), "right": (width, "r")}[side],
    )
    for k, line in enumerate(lines):
        pen.text((x, step * (k + 0.5)), line, "black", font(size, bold), f"{anchor}m")
    return block


def _row(
    picture: Image.Image, caption: Sequence[str], cells: Sequence[Panel | None], mark: Mark, *, smooth: bool
) -> Image.Image:
    """The picture and maps in one row: titles above, scales below."""
    width, height = picture.size
    titles = [_title(cell, caption, width) for cell in cells]
    above = max(len(title) for title in titles) * round(LINE * TITLE) + 4
    below = 10 + 8 + 2 * round(LINE * LEGEND)
    row = Image.new("RGB", (len(cells) * (width + GAP) - GAP, above + height + below), "white")
    for k, (cell, title) in enumerate(zip(cells, titles, strict=True)):
        left = k * (width + GAP)
        written = _text(title, width, TITLE, bold=cell is None)
        row.paste(written, (left, above - 4 - written.height))
        if cell is None:
            row.paste(mark(picture), (left, above))
            continue
        row.paste(mark(picture_of(colours(picture, cell.values, smooth=smooth))), (left, above))
        row.paste(_scale(cell.values, width, softmax=cell.softmax), (left, above + height + 6))
    return row


def _title(cell: Panel | None, caption: Sequence[str], width: int) -> list[str]:
    if cell is None:
        lines = list(caption)
    else:
        name, _, note = cell.name.partition(", ")
        of = f"for: {cell.of}" if cell.of else ""
        size = f"{cell.values.shape[0]}×{cell.values.shape[1]}"
        lines = [name, ", ".join(filter(None, (size, of, note)))]
    return [part for line in lines for part in _wrap(line, width, TITLE, bold=cell is None)]


def _scale(values: Tensor, width: int, *, softmax: bool) -> Image.Image:
    """The colours from the smallest to the largest value, and what they mean."""
    ramp = (
        np.full((width, 3), UNIFORM) if is_uniform(values) else mpl.colormaps[COLOURS](np.linspace(0, 1, width))[:, :3]
    )
    low, high = (words.split("\n") for words in scale_words(values, softmax=softmax))
    block = Image.new("RGB", (width, 12 + max(len(low), len(high)) * round(LINE * LEGEND)), "white")
    block.paste(picture_of(np.broadcast_to(ramp, (10, width, 3))), (0, 0))
    block.paste(_text(low, width // 2, LEGEND, side="left"), (0, 12))
    block.paste(_text(high, width // 2, LEGEND, side="right"), (width - width // 2, 12))
    return block


def picture_of(colour: NDArray[np.floating]) -> Image.Image:
    """(H, W, 3) in 0..1 -> 8 bit RGB."""
    return Image.fromarray((colour * 255).round().astype(np.uint8))


def _bars(name: str, weights: Tensor, width: int) -> Image.Image:
    """Channel weights as bars from 0, with their range."""
    low, mean, high = float(weights.min()), float(weights.mean()), float(weights.max())
    text = f"{name}: weights of {len(weights)} channels, min {low:.3g}, mean {mean:.3g}, max {high:.3g}"
    title = _text(_wrap(text, width, TITLE), width, TITLE, side="left")
    gutter, height = 48, 76
    bottom, top = min(low, 0.0), max(high, 0.0)
    span = (top - bottom) or 1.0
    block = Image.new("RGB", (width, title.height + height + 30), "white")
    block.paste(title, (0, 0))
    pen, letters, start = ImageDraw.Draw(block), font(LEGEND), title.height + 8

    def y_of(value: float) -> float:
        return start + height * (top - value) / span

    edges = np.linspace(gutter, width, len(weights) + 1)
    for left, right, value in zip(edges[:-1], edges[1:], weights.tolist(), strict=True):
        ends = sorted((y_of(value), y_of(0.0)))
        pen.rectangle((left, ends[0], max(right - 1, left), ends[1]), fill=(120, 40, 130))
    pen.line((gutter, y_of(0.0), width, y_of(0.0)), fill="black")
    for value in {bottom, top}:
        pen.text((gutter - 6, y_of(value)), f"{value:.2g}", "black", letters, "rm")
    pen.text((gutter, start + height + 3), "channel 0", "black", letters, "la")
    pen.text((width, start + height + 3), str(len(weights) - 1), "black", letters, "ra")
    return block
