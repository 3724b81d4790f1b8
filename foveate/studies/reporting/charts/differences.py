"""The paired differences of the plans to the first one, seed by seed, as an SVG picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from foveate.io import Row
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.reporting.charts.labelling import LINE
from foveate.studies.reporting.charts.scatter import is_number, kind_of, spans, ticks

__all__ = ["Change", "changes_of", "differences"]

_LETTER = 7.0  # pixels
_ROW = 34.0  # pixels under a plan's name


@dataclass(frozen=True)
class Change:
    """One plan against the first.

    Args:
        label: the plan.
        mean: points of what is compared.
        low: lower end of the 95% interval.
        high: upper end.
        seeds: the difference with each seed, or none.
        sign: the verdict, as in ``scatter.Point``.
    """

    label: str
    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    sign: int | None


def changes_of(rows: Sequence[Row]) -> list[Change]:
    """The rows of a comparison that have a difference for each seed. The keys are those of ``write_report``."""
    found = []
    for row in rows:
        numbers = [row.get(key) for key in ("difference", "difference_low", "difference_high")]
        seeds = row.get("difference_per_seed")
        if seeds and all(is_number(value) for value in (*numbers, *seeds)):
            mean, low, high = (float(value) for value in numbers if value is not None)
            found.append(Change(str(row.get("plan", "")), mean, low, high, tuple(seeds), row.get("sign")))
    return found


def differences(changes: Sequence[Change], width: int = 760, words: str = "", measure: Measure = TOP1) -> str:
    """Draw a line for each plan: its name above, its interval and its seeds below.

    Args:
        changes: at least one.
        width: in pixels. The height follows from the plans.
        words: what the picture shows, for those who do not see it; without it the differences, seed by seed.
        measure: what is compared.

    Returns:
        An ``<svg>`` element. Its colours come from the page's style sheet, as those of ``scatter`` do.
    """
    words = words or f"Differences in {measure.noun}, seed by seed"
    left, right, top = 16.0, width - 16.0, 10.0
    values = [value for c in changes for value in (c.low, c.high, *c.seeds, 0.0)]
    margin = max(0.06 * (max(values) - min(values)), 0.1)
    low, high = min(values) - margin, max(values) + margin

    def x_of(points: float) -> float:
        return left + (points - low) / (high - low) * (right - left)

    parts, y = [], top
    for change in changes:
        lines = textwrap.wrap(change.label, int((right - left) / _LETTER)) or [""]
        parts.append(f'<text class="label">{spans(lines, left, y)}</text>')
        y += LINE * len(lines)
        places = [x_of(value) for value in (change.low, change.high, change.mean, *change.seeds)]
        parts += _marks(kind_of(change.sign), places, y + _ROW / 2)
        y += _ROW
    grid = []
    for tick in ticks(low, high, int((right - left) / 70)):
        x = x_of(tick)
        kind = "base" if tick == 0 else "grid"
        grid.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{y:.1f}"/>')
        grid.append(f'<text class="axis" x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{_signed(tick)}</text>')
    middle = (left + right) / 2
    axis = f'<text class="axis" x="{middle}" y="{y + 38:.1f}" text-anchor="middle">points of {measure.name}</text>'
    size = f'viewBox="0 0 {width} {y + 48:.0f}" width="{width}" height="{y + 48:.0f}"'
    return f'<svg {size} role="img" aria-label="{words}">{"".join([*grid, *parts, axis])}</svg>'


def _marks(kind: str, places: Sequence[float], y: float) -> list[str]:
    """The interval and the mean above, the seeds below, so that neither hides the other."""
    low, high, mean, *seeds = places
    caps = "".join(f"M{end:.1f} {y - 9:.1f}v10" for end in (low, high))
    drawn = [f'<path class="whisker {kind}" d="M{low:.1f} {y - 4:.1f}H{high:.1f}{caps}"/>']
    drawn += [f'<circle class="point {kind}" cx="{mean:.1f}" cy="{y - 4:.1f}" r="5"/>']
    return drawn + [f'<circle class="seed" cx="{x:.1f}" cy="{y + 8:.1f}" r="3"/>' for x in seeds]


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+.6g}".replace("-", "−")
