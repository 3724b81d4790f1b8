"""What varies in the families of a comparison, as a table and as pictures: the effect of each level of each factor."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.io import Row
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.reporting.charts.differences import Change, differences
from foveate.studies.reporting.charts.scatter import is_number
from foveate.studies.reporting.tables import Cell, Line, PlanTable, minus, signed

__all__ = ["effect_plot", "factor_lines", "factor_table"]


def factor_table(rows: Sequence[Row], measure: Measure = TOP1) -> PlanTable | None:
    """A row for each level; None without factors. The keys are those of ``FactorAnalysis.as_dicts``."""
    if not rows:
        return None
    cells = [
        [
            Cell(f"{row['plans']}", kind="number"),
            Cell(f"{row[measure.key]:.1f}", kind="number"),
            Cell(signed(row["effect"], 1), _interval(row), whole=True, kind="number")
            if is_number(row.get("effect"))
            else Cell("", kind="number"),
        ]
        for row in rows
    ]
    return PlanTable(["Plans", measure.heading, "Effect, points"], [_label(row) for row in rows], cells, "Level")


def factor_lines(rows: Sequence[Row]) -> list[Line]:
    """The test of each factor as text."""
    texts = {(row["family"], row["factor"]): row for row in rows}
    lines = []
    for row in texts.values():
        name, _, text = str(row["text"]).partition(": ")
        lines.append(Line(name, minus(text), "same", str(row["family"])))
    return lines


def effect_plot(rows: Sequence[Row], width: int, measure: Measure = TOP1) -> str | None:
    """The effects with their intervals as an SVG picture; None where there are none."""
    changes = [
        Change(_label(row), row["effect"], row["effect_low"], row["effect_high"], (), _sign(row))
        for row in rows
        if is_number(row.get("effect"))
    ]
    words = f"Effects of what varies, in points of {measure.noun}"
    return differences(changes, width, words, measure) if changes else None


def _sign(row: Row) -> int | None:
    """1 or -1 where the factor matters and the interval leaves out 0; 0 where not; None without a test."""
    if not is_number(row.get("p_holm")):
        return None
    if row["p_holm"] >= 0.05 or row["effect_low"] <= 0 <= row["effect_high"]:
        return 0
    return 1 if row["effect"] > 0 else -1


def _interval(row: Row) -> str:
    return f"[{signed(row['effect_low'], 1)}, {signed(row['effect_high'], 1)}]"


def _label(row: Row) -> str:
    return f"{row['factor']}: {row['level']}"
