"""One picture of an explanation: the image, each map laid over it with its true scale, channel weights as bars.

Each map is drawn over its own range of values, and the range is written under it: the maps of a softmax are tiny in
value, so they are given in units of the uniform value 1/hw as well. A map that is constant is drawn so: below a
relative spread of ``FLAT`` it is not stretched over the colours.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from foveate.explanations.result import Explanation, Map

__all__ = ["FLAT", "colours", "draw", "is_uniform", "scale_words"]

FLAT = 1e-3  # (max - min) / max(|min|, |max|) below which a map counts as uniform
COLOURS = "inferno"  # perceptually uniform
UNIFORM = 0.6  # the grey of a map that is constant: no colour, since it prefers no place
OPACITY = 0.6
COLUMNS = 5
MOST = 16  # maps drawn of one site: those that vary most; all are in the numbers
CELL, DPI = 2.3, 120  # inches
TEXT = {"parse_math": False, "color": "black"}  # a name may hold a dollar sign


def draw(explanation: Explanation, index: int = 0) -> Image.Image:
    """Draw one image of an explanation.

    Args:
        explanation: what ``explain`` returned.
        index: which image.

    Returns:
        An RGB picture. Its size depends on the number of maps.
    """
    cells, note = _grid(explanation.maps, index)
    bars = len(explanation.channels)
    picture = explanation.pictures[index].convert("RGB")
    tall = CELL * picture.height / picture.width + 0.95
    heights = [tall] * len(cells) + [1.25] * bars
    width = CELL * max([len(row) for row in cells] + [3 if bars else 1])
    figure = Figure(figsize=(width, sum(heights)), dpi=DPI, facecolor="white", layout="constrained")
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for row, wanted in zip(rows, cells, strict=False):
        axes = row.subplots(1, max(len(line) for line in cells), squeeze=False)[0]
        for axis in axes:
            axis.axis("off")
        for axis, what in zip(axes, wanted, strict=False):
            if what is None:
                _show_picture(axis, picture, explanation, index)
            else:
                _show_map(axis, picture, what, index, explanation)
    for row, (name, weights) in zip(rows[len(cells) :], explanation.channels, strict=True):
        _show_channels(row.subplots(), name, weights[index])
    if note:
        figure.suptitle(note, fontsize=8.5, **TEXT)
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a class name in a script without a font
        figure.savefig(png, format="png", bbox_inches="tight", pad_inches=0.08, facecolor="white")
    return Image.open(png).convert("RGB")


def _grid(maps: tuple[Map, ...], index: int) -> tuple[list[list[Map | None]], str]:
    """Rows of cells, and a note on what was left out.

    None is the picture itself. A site with several maps has rows of its own, the others share.
    """
    sites: dict[str, list[Map]] = {}
    for found in maps:
        sites.setdefault(found.module, []).append(found)
    groups = [_most_varied(group, index) for group in sites.values() if len(group) > 1]
    groups += [[group[0] for group in sites.values() if len(group) == 1]]
    shown, note = sum(map(len, groups)), ""
    if shown < len(maps):
        note = f"{shown} of {len(maps)} maps are drawn: for each site the {MOST} that vary most in this image"
    most = COLUMNS - 1
    rows = [[None, *group[start : start + most]] for group in groups for start in range(0, len(group), most)]
    return rows or [[None]], note


def _most_varied(group: list[Map], index: int) -> list[Map]:
    def spread(found: Map) -> float:
        return float(found.values[index].max() - found.values[index].min())

    chosen = sorted(group, key=spread, reverse=True)[:MOST]
    return [found for found in group if any(found is one for one in chosen)]


def is_uniform(values: Tensor) -> bool:
    """Whether a map, (h, w), is constant: its relative spread is at most ``FLAT``."""
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
    words = [f"{end} {'≈0' if 0 < abs(value) < tiny else f'{value:.3g}'}" for end, value in (("min", low), ("max", high))]
    if softmax:
        places = values.numel()
        words = [f"{word}\n{_times(value * places)}× uniform" for word, value in zip(words, (low, high), strict=True)]
    return words[0], words[1]


def _times(ratio: float) -> str:
    if ratio < 0.01:
        return "<0.01"
    # Near 1 the digits that differ from 1 are what matters.
    return f"{ratio:.3f}" if 0.9 < ratio < 1.1 else f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def colours(picture: Image.Image, values: Tensor) -> np.ndarray[Any, Any]:
    """Lay a map over a picture.

    The map is enlarged bilinearly with its cells' corners on the picture's corners (half-pixel centres), and its
    colours are mixed with the picture in grey, so that colour means the map alone.

    Args:
        picture: H x W pixels.
        values: (h, w).

    Returns:
        (H, W, 3) in 0..1. A uniform map is an even grey.
    """
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None] / 255
    if is_uniform(values):
        coloured = np.full((*grey.shape[:2], 3), UNIFORM)
    else:
        unit = (values - values.min()) / (values.max() - values.min())
        size = (picture.height, picture.width)
        large = F.interpolate(unit[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        coloured = colormaps[COLOURS](large.clamp(0, 1).numpy())[..., :3]
    mixed: np.ndarray[Any, Any] = OPACITY * coloured + (1 - OPACITY) * grey
    return mixed


def _title(axis: Any, lines: list[str], bold: bool = False) -> None:
    wrapped = [part for line in lines for part in textwrap.wrap(line, 27) or [""]]
    axis.set_title("\n".join(wrapped), fontsize=8.5, fontweight="bold" if bold else "normal", **TEXT)


def _show_picture(axis: Any, picture: Image.Image, explanation: Explanation, index: int) -> None:
    axis.imshow(np.asarray(picture))
    said = explanation.label(int(explanation.predictions[index]))
    _title(axis, [f"predicted: {said}", f"probability {float(explanation.probabilities[index]):.3f}"], bold=True)


def _show_map(axis: Any, picture: Image.Image, found: Map, index: int, explanation: Explanation) -> None:
    values = found.values[index]
    size = f"{values.shape[0]}×{values.shape[1]}"
    name, _, note = found.name.partition(", ")
    if explanation.targets is not None:
        note = f"for: {explanation.label(int(explanation.targets[index]))}"
    lines = [name, f"{size}, {note}" if note else size]
    _title(axis, lines)
    axis.imshow(colours(picture, values))
    softmax = bool(((found.values.sum(dim=(-2, -1)) - 1).abs() < 1e-3).all())
    low, high = scale_words(values, softmax=softmax)
    strip = axis.inset_axes((0, -0.075, 1, 0.045))
    if is_uniform(values):
        strip.imshow([[UNIFORM]], "gray", vmin=0, vmax=1, aspect="auto")
    else:
        strip.imshow(np.linspace(0, 1, 256)[None], COLOURS, aspect="auto")
    strip.set_axis_off()
    for x, side, words in ((0.0, "left", low), (1.0, "right", high)):
        axis.text(x, -0.09, words, transform=axis.transAxes, ha=side, va="top", fontsize=7.5, **TEXT)


def _show_channels(axis: Any, name: str, weights: Tensor) -> None:
    low, mean, high = float(weights.min()), float(weights.mean()), float(weights.max())
    axis.stairs(weights.numpy(), fill=True, color=colormaps[COLOURS](0.35))
    axis.set_xlim(0, len(weights))
    axis.set_ylim(min(0.0, low), max(high, 0.0) * 1.05 or 1.0)
    axis.tick_params(labelsize=7)
    axis.set_xlabel("channel", fontsize=7.5, labelpad=1)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    words = f"{name} · weights of {len(weights)} channels: min {low:.3g}, mean {mean:.3g}, max {high:.3g}"
    axis.set_title(words, fontsize=8.5, loc="left", **TEXT)
