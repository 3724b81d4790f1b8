"""Accuracy against FLOPs and against memory, as in the PatchConvNet paper's figure 7: printed accuracies, our FLOPs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from foveate.io import write_atomically
from foveate.studies.reporting.charts.labelling import Box, labels, lead
from foveate.studies.reproduction.results import Reproduction

__all__ = ["PICTURES", "Dot", "dots", "draw", "label_positions"]

TABLE, ACCURACY = "tradeoff", "Top-1 Acc."
WIDTH, HEIGHT, DPI, LETTER = 1000, 700, 100, 11.0  # pixels
MARGINS = Box(62, 48, WIDTH - 16, HEIGHT - 56)
THEIRS = "Ours-"  # what the paper calls its own networks
FAMILIES = {
    "Traditional ConvNets": ("s", "#4c78a8"),
    "Vision Transformers and derivatives": ("^", "#54a24b"),
    "Vision MLP": ("D", "#b07aa1"),
    "Patch-based ConvNets": ("o", "#f28e2b"),
}
OWN = ("*", "#c0392b", "PatchConvNet")

PICTURES = {
    "reproduce_flops.png": ("FLOPs", "multiply-adds of one image, billions: counted here"),
    "reproduce_memory.png": ("Peak Mem", "peak memory in MB, 256 images: as the paper measured it on a GPU"),
}
"""File -> the column that lies across, and its title."""


@dataclass(frozen=True)
class Dot:
    """One network: its name and family, what lies across, and the accuracy that the paper prints, in percent."""

    name: str
    family: str
    x: float
    y: float


def dots(result: Reproduction, column: str) -> list[Dot]:
    """The networks of the trade-off table; FLOPs are ours, whatever else is as printed."""
    part = result.of(TABLE)
    cells = {(cell.row, cell.column): cell for cell in part.cells}
    found = []
    for row in part.tables[0].rows:
        cell, accuracy = cells[row.label, column], cells[row.label, ACCURACY]
        x = float(cell.exact or cell.printed)
        found.append(Dot(row.name.replace(THEIRS, "PatchConvNet-"), row.family, x, float(accuracy.printed)))
    return found


def label_positions(points: Sequence[Dot]) -> list[tuple[Box, list[str]]]:
    """Box and lines of each point's name, in pixels, over no point, no other name and not over the legend."""
    frame = MARGINS
    spots = [_pixels(point, points) for point in points]
    legend = Box(frame.left, frame.bottom - 110, frame.left + 262, frame.bottom)
    ink = [legend, *(Box(x - 7, y - 7, x + 7, y + 7) for x, y in spots)]
    wanted = [(spot, point.name) for spot, point in zip(spots, points, strict=True)]
    inside = Box(frame.left + 2, frame.top + 2, frame.right - 2, frame.bottom - 2)
    return labels(wanted, ink, inside, 30) or []


def draw(points: Sequence[Dot], title: str, file: Path) -> None:
    """Draw the points with their names.

    Args:
        points: at least two different ones.
        title: of what lies across.
        file: a PNG.

    Raises:
        FoveateError: the file cannot be written.
    """
    figure = Figure((WIDTH / DPI, HEIGHT / DPI), dpi=DPI)
    frame = MARGINS
    size = (frame.right - frame.left) / WIDTH, (frame.bottom - frame.top) / HEIGHT
    axes = figure.add_axes((frame.left / WIDTH, 1 - frame.bottom / HEIGHT, *size))
    _axes_of(axes, title, points)
    for point in points:
        marker, colour, _ = _style(point)
        size_of = 14 if marker == "*" else 8
        axes.plot(point.x, point.y, marker, color=colour, mec="white", mew=0.6, markersize=size_of, zorder=3)
    for point, (box, lines) in zip(points, label_positions(points), strict=False):
        _name(figure, _pixels(point, points), box, lines)
    _legend(axes, points)
    drawn, data = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:  # a third of the bytes, and no difference to the eye
        image.convert("RGB").quantize(128).save(data, "PNG", optimize=True)
    write_atomically(file, data.getvalue())


def _name(figure: Figure, spot: tuple[float, float], box: Box, lines: Sequence[str]) -> None:
    """A point's name, and a line to it where it stands apart."""
    end = lead(box, *spot)
    if end is not None:
        xs, ys = [spot[0] / WIDTH, end[0] / WIDTH], [1 - spot[1] / HEIGHT, 1 - end[1] / HEIGHT]
        figure.add_artist(Line2D(xs, ys, color="#9aa1a9", linewidth=0.6))
    left = box.right <= spot[0]
    x, y = (box.right if left else box.left) / WIDTH, 1 - (box.top + box.bottom) / 2 / HEIGHT
    side = "right" if left else "left"
    figure.text(x, y, "\n".join(lines), ha=side, va="center", fontsize=LETTER * 72 / DPI)


def _limits(points: Sequence[Dot]) -> tuple[float, float, float, float]:
    """Left, right, lower and upper end of the axes."""
    xs, ys = [p.x for p in points], [p.y for p in points]
    room = (max(ys) - min(ys)) / 20
    return min(xs) / 1.35, max(xs) * 1.35, min(ys) - room, max(ys) + room


def _axes_of(axes: Axes, title: str, points: Sequence[Dot]) -> None:
    low, high, bottom, top = _limits(points)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)
    axes.set_xlabel(title, fontsize=9)
    axes.set_ylabel("ImageNet top-1 accuracy, %: as the papers print it", fontsize=9)
    axes.set_title("Accuracy against cost; training recipes differ", fontsize=10, loc="left")
    ticks = [m * 10**e for e in range(6) for m in (1, 2, 3, 5) if low <= m * 10**e <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(color="#e3e6ea", linewidth=0.7, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _pixels(point: Dot, points: Sequence[Dot]) -> tuple[float, float]:
    """Where a point lies, from the picture's left upper corner."""
    left, right, bottom, top = _limits(points)
    across = math.log(point.x / left) / math.log(right / left)
    down = (top - point.y) / (top - bottom)
    x = MARGINS.left + across * (MARGINS.right - MARGINS.left)
    return x, MARGINS.top + down * (MARGINS.bottom - MARGINS.top)


def _style(point: Dot) -> tuple[str, str, str]:
    return OWN if point.name.startswith("PatchConvNet") else (*FAMILIES[point.family], point.family)


def _legend(axes: Axes, points: Sequence[Dot]) -> None:
    for marker, colour, name in dict.fromkeys(_style(point) for point in points):
        axes.plot([], [], marker, color=colour, label=name, markersize=9 if marker == "*" else 6)
    axes.legend(loc="lower left", fontsize=8, framealpha=1, edgecolor="none")  # white: no line of the grid behind it
