"""Accuracy against cost as an SVG picture: one labelled point for each plan, no label over another.

The whiskers of a plan are the 95% interval of its difference to the baseline, drawn around its own score: where
they cross the baseline's dashed line there is no evidence of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeGuard

from matplotlib.ticker import MaxNLocator

from foveate.io import Row
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.reporting.charts.labelling import LINE, Box, labels, lead

__all__ = ["Point", "is_number", "kind_of", "points_of", "scatter", "spans", "ticks"]


@dataclass(frozen=True)
class Point:
    """One plan.

    Args:
        label: the plan.
        macs: multiply-adds of one image.
        score: what is compared, in percent.
        low: lower end of the whisker, in percent; None without one.
        high: upper end.
        seeds: the score with each seed, in percent.
        sign: the verdict: 1 better, -1 worse, 0 no evidence of a difference; None where it is unknown.
    """

    label: str
    macs: float
    score: float
    low: float | None = None
    high: float | None = None
    seeds: tuple[float, ...] = ()
    sign: int | None = None

    @property
    def heights(self) -> tuple[float, ...]:
        """Everything that is drawn for it, in percent."""
        ends = () if self.low is None or self.high is None else (self.low, self.high)
        return (self.score, *ends, *self.seeds)


def points_of(rows: Sequence[Row], measure: Measure = TOP1) -> list[Point]:
    """The rows of a comparison that have a cost and a score, as points. The keys are those of ``write_report``."""
    found = []
    for row in rows:
        if not all(map(is_number, (row.get("macs"), row.get(measure.key)))):
            continue
        macs, score, low, high = float(row["macs"]), float(row[measure.key]), None, None
        if all(is_number(row.get(key)) for key in ("difference", "difference_low", "difference_high")):
            low, high = (score + row[f"difference_{end}"] - row["difference"] for end in ("low", "high"))
        seeds = tuple(float(value) for value in row.get(f"{measure.key}_per_seed") or () if is_number(value))
        kept = seeds if len(seeds) > 1 else ()
        found.append(Point(str(row.get("plan", "")), macs, score, low, high, kept, row.get("sign")))
    return found


def kind_of(sign: int | None) -> str:
    """The class that gives a verdict its colour."""
    return "" if sign is None else ("same", "better", "worse")[sign]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a cell of a table holds a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def scatter(points: Sequence[Point], width: int = 760, measure: Measure = TOP1) -> str:
    """Draw the points; the first one is the baseline.

    Args:
        points: at least one.
        width: in pixels. The height follows from the labels.
        measure: what is compared.

    Returns:
        An ``<svg>`` element. Its colours come from the page's style sheet: classes axis, grid, base, whisker, point,
        seed, lead, and the verdicts better, worse, same.
    """
    height, found = max(320.0, width / 2), None
    while found is None:  # a higher picture has room for more labels; in the end they may lie over whiskers
        height *= 1.2
        frame = Box(56, 12, width - 14, height - 46)
        place = _Scale(points, frame)
        ink = place.ink(points) if height < 5 * width else None
        spots = [(x, place.y_of(p.score)) for x, p in zip(place.xs, points, strict=True)]
        wanted = [(spot, p.label) for spot, p in zip(spots, points, strict=True)]
        found = labels(wanted, ink, frame, max(16, width // 26))
    parts = [*place.axes(measure.noun), *_marks(points, place)]
    for (x, y), (box, lines) in zip(spots, found, strict=True):
        end = lead(box, x, y)
        if end is not None:
            parts.append(f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>')
        side, anchor = (box.right, "end") if box.right <= x else (box.left, "start")
        parts.append(f'<text class="label" text-anchor="{anchor}">{spans(lines, side, box.top)}</text>')
    size = f'viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}"'
    return f'<svg {size} role="img" aria-label="{measure.title} against MACs">{"".join(parts)}</svg>'


def spans(lines: Sequence[str], x: float, top: float) -> str:
    """Lines of text below each other, for a ``<text>``."""
    ys = (top + LINE * (k + 0.8) for k in range(len(lines)))
    return "".join(f'<tspan x="{x:.1f}" y="{y:.1f}">{escape(line)}</tspan>' for y, line in zip(ys, lines, strict=True))


class _Scale:
    """From MACs and percent to pixels.

    Args:
        points: what is drawn. ``xs`` are their places from the left: those at nearly one cost are moved apart.
        frame: where it is drawn.
    """

    def __init__(self, points: Sequence[Point], frame: Box) -> None:
        self.frame = frame
        macs = [p.macs for p in points]
        # Never so close that a cost or a score that hardly differs seems to differ much.
        low, high = _padded(macs, 0.1 * (max(macs) - min(macs)), least=0.01 * max(macs) or 1.0)
        self.x = low, high + 0.4 * (high - low)  # room for labels on the right, where most plans stand
        heights = [height for p in points for height in p.heights]
        self.y = _padded(heights, 0.08 * (max(heights) - min(heights)), least=0.5)
        places = [self.x_of(p.macs) for p in points]
        self.xs = _side_by_side(places)
        self.moved = any(abs(x - place) > 2 for x, place in zip(self.xs, places, strict=True))

    def x_of(self, macs: float) -> float:
        """Pixels from the left."""
        low, high = self.x
        return self.frame.left + (macs - low) / (high - low) * (self.frame.right - self.frame.left)

    def y_of(self, percent: float) -> float:
        """Pixels from the top."""
        low, high = self.y
        return self.frame.bottom - (percent - low) / (high - low) * (self.frame.bottom - self.frame.top)

    def ink(self, points: Sequence[Point]) -> list[Box]:
        """What labels must not cover: the baseline's line, the points, their whiskers and their seeds."""
        line = self.y_of(points[0].score)
        boxes = [Box(self.frame.left, line - 1, self.frame.right, line + 1)]
        for x, point in zip(self.xs, points, strict=True):
            ys = [self.y_of(height) for height in point.heights]
            boxes.append(Box(x - 6, min(ys) - 5, x + 6, max(ys) + 5))
        return boxes

    def axes(self, noun: str) -> Iterator[str]:
        """Grid, ticks and titles."""
        f = self.frame
        unit, word = (1e9, ", billions") if self.x[1] >= 2e9 else (1e6, ", millions") if self.x[1] >= 2e6 else (1.0, "")
        for tick in ticks(self.x[0] / unit, self.x[1] / unit, int((f.right - f.left) / 90)):
            x = self.x_of(tick * unit)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{f.top}" y2="{f.bottom:.1f}"/>'
            yield f'<text class="axis" x="{x:.1f}" y="{f.bottom + 17:.1f}" text-anchor="middle">{tick:.6g}</text>'
        for tick in ticks(*self.y, int((f.bottom - f.top) / 50)):
            y = self.y_of(tick)
            yield f'<line class="grid" x1="{f.left}" x2="{f.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="axis" x="{f.left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>'
        middle_x, middle_y = (f.left + f.right) / 2, (f.top + f.bottom) / 2
        title = f"MACs{word}{'; points at nearly one cost are moved apart' * self.moved}"
        yield f'<text class="axis" x="{middle_x}" y="{f.bottom + 38:.1f}" text-anchor="middle">{title}</text>'
        turned = f'transform="rotate(-90 14 {middle_y:.1f})" text-anchor="middle"'
        yield f'<text class="axis" x="14" y="{middle_y:.1f}" {turned}>{noun}, %</text>'


def _padded(values: Sequence[float], margin: float, least: float) -> tuple[float, float]:
    margin = max(margin, least)
    return min(values) - margin, max(values) + margin


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most so many round numbers from low to high."""
    return [float(tick) for tick in MaxNLocator(max(2, most)).tick_values(low, high) if low <= tick <= high]


def _side_by_side(xs: Sequence[float], apart: float = 13.0) -> list[float]:
    """Move places apart, in their order, each as little as its neighbours allow: crowds keep their centre."""
    crowds: list[list[int]] = []
    for index in sorted(range(len(xs)), key=lambda k: xs[k]):
        crowds.append([index])
        while len(crowds) > 1 and _row(xs, crowds[-1], apart)[0] - _row(xs, crowds[-2], apart)[-1] < apart:
            crowds[-2:] = [crowds[-2] + crowds[-1]]
    places = dict(pair for crowd in crowds for pair in zip(crowd, _row(xs, crowd, apart), strict=True))
    return [places[index] for index in range(len(xs))]


def _row(xs: Sequence[float], crowd: Sequence[int], apart: float) -> list[float]:
    centre = sum(xs[index] for index in crowd) / len(crowd)
    return [centre + apart * (k - (len(crowd) - 1) / 2) for k in range(len(crowd))]


def _marks(points: Sequence[Point], place: _Scale) -> Iterator[str]:
    y = place.y_of(points[0].score)
    yield f'<line class="base" x1="{place.frame.left}" x2="{place.frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    for x, point in zip(place.xs, points, strict=True):
        if point.low is not None and point.high is not None:
            low, high = place.y_of(point.low), place.y_of(point.high)
            caps = "".join(f"M{x - 5:.1f} {end:.1f}h10" for end in (low, high))
            yield f'<path class="whisker {kind_of(point.sign)}" d="M{x:.1f} {low:.1f}V{high:.1f}{caps}"/>'
        for seed in point.seeds:
            yield f'<circle class="seed" cx="{x:.1f}" cy="{place.y_of(seed):.1f}" r="2.5"/>'
        kind = "point first" if point is points[0] else f"point {kind_of(point.sign)}"
        yield f'<circle class="{kind}" cx="{x:.1f}" cy="{place.y_of(point.score):.1f}" r="5"/>'
