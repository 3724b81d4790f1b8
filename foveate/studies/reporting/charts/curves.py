"""Training curves of the plans: score and loss by epoch, each plan beside the baseline."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from foveate.io import Row
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.reporting.charts.labelling import LINE
from foveate.studies.reporting.charts.scatter import is_number, spans, ticks

__all__ = ["MOST_CURVES", "curves"]

MOST_CURVES = 12  # plans that are drawn
_HEIGHT, _GAP, _LEFT, _BELOW = 130.0, 44.0, 44.0, 22.0  # pixels
_LETTER = 7.0

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Panel:
    """One picture of a plan.

    Args:
        title: what is drawn.
        lines: classes of lines, and their points.
    """

    title: str
    lines: Sequence[tuple[str, Points]]


def curves(histories: Mapping[str, Sequence[Sequence[Row]]], width: int = 760, measure: Measure = TOP1) -> str:
    """Draw two pictures for each plan: the score on the validation images, and the loss in training and validation.

    Args:
        histories: for each plan a list of epochs for each seed, as ``fit`` writes them into summary.csv: "epoch",
            "train_loss", "eval_loss", "eval_top1" (0 to 1). The first plan is the baseline, which is drawn in all
            pictures as a dashed line.
        width: in pixels.
        measure: what is compared; its column takes the place of "eval_top1".

    Returns:
        An ``<svg>`` element; "" where no plan has an epoch. The lines are means over the seeds; single seeds are thin.
    """
    shown = {label: of for label, of in list(histories.items())[:MOST_CURVES] if any(of)}
    if not shown:
        return ""
    base = next(iter(shown.values()))
    key = measure.history
    score = _range([_column(seed, key, 100.0) for of in shown.values() for seed in of])
    loss = _range(
        [_column(seed, of_loss) for of in shown.values() for seed in of for of_loss in ("train_loss", "eval_loss")]
    )
    across = 2 if width >= 600 else 1
    panel = (width - (across - 1) * _GAP) / across
    parts: list[str] = []
    y = 6.0
    for label, of in shown.items():
        lines = textwrap.wrap(label, int(width / _LETTER)) or [""]
        parts.append(f'<text class="label">{spans(lines, 0, y)}</text>')
        y += LINE * len(lines) + 4
        other = [] if of is base else [("curve base", _mean([_column(seed, key, 100.0) for seed in base]))]
        panels = [
            (
                _Panel(
                    f"{measure.column}, validation",
                    [
                        *other,
                        *(("curve thin", _column(seed, key, 100.0)) for seed in of if len(of) > 1),
                        ("curve", _mean([_column(seed, key, 100.0) for seed in of])),
                    ],
                ),
                score,
            ),
            (
                _Panel(
                    "loss: training dotted, validation solid",
                    [
                        ("curve dotted", _mean([_column(seed, "train_loss") for seed in of])),
                        ("curve", _mean([_column(seed, "eval_loss") for seed in of])),
                    ],
                ),
                loss,
            ),
        ]
        for number, (drawn, extent) in enumerate(panels):
            left = (number % across) * (panel + _GAP)
            parts += _drawn(drawn, extent, left + _LEFT, left + panel - 4, y)
            if number % across == across - 1:
                y += _HEIGHT + _BELOW + LINE
        y += 10
    size = f'viewBox="0 0 {width} {y:.0f}" width="{width}" height="{y:.0f}"'
    return f'<svg {size} role="img" aria-label="Training curves">{"".join(parts)}</svg>'


def _column(epochs: Sequence[Row], key: str, unit: float = 1.0) -> list[tuple[float, float]]:
    return [(float(row["epoch"]) + 1, unit * float(row[key])) for row in epochs if is_number(row.get(key))]


def _mean(series: Sequence[Points]) -> list[tuple[float, float]]:
    """The mean of the seeds at each epoch that all have."""
    of = [dict(points) for points in series if points]
    if not of:
        return []
    return [(x, sum(points[x] for points in of) / len(of)) for x in sorted(set.intersection(*map(set, of)))]


def _range(series: Sequence[Points]) -> tuple[float, float, float, float]:
    """The least and the largest epoch, the least and the largest value."""
    xs = [x for points in series for x, _ in points] or [1.0]
    ys = [y for points in series for _, y in points if math.isfinite(y)] or [0.0]
    margin = max(0.05 * (max(ys) - min(ys)), 1e-3)
    return min(xs), max(max(xs), min(xs) + 1), min(ys) - margin, max(ys) + margin


def _drawn(
    panel: _Panel, extent: tuple[float, float, float, float], left: float, right: float, y: float
) -> Iterator[str]:
    first, last, low, high = extent
    top, bottom = y + LINE, y + LINE + _HEIGHT

    def x_of(epoch: float) -> float:
        return left + (epoch - first) / (last - first) * (right - left)

    def y_of(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    yield f'<text class="axis" x="{left:.1f}" y="{y + 0.7 * LINE:.1f}">{panel.title}</text>'
    for tick in ticks(low, high, 4):
        yield f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>'
        yield f'<text class="axis" x="{left - 6:.1f}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    for tick in (tick for tick in ticks(first, last, 6) if tick == int(tick)):
        anchor = "middle" if first < tick < last else "start" if tick == first else "end"
        yield f'<text class="axis" x="{x_of(tick):.1f}" y="{bottom + 16:.1f}" text-anchor="{anchor}">{tick:.0f}</text>'
    for kind, points in panel.lines:
        at = " ".join(f"{x_of(x):.1f},{y_of(value):.1f}" for x, value in points if math.isfinite(value))
        if len(points) > 1:
            yield f'<polyline class="{kind}" points="{at}"/>'
        elif points:
            yield f'<circle class="point first" cx="{x_of(points[0][0]):.1f}" cy="{y_of(points[0][1]):.1f}" r="3"/>'
