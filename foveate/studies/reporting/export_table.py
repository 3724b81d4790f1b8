"""The exported files in the report."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.io import Row
from foveate.studies.deployment.plan_exports import ratio_text
from foveate.studies.reporting.tables import Cell, PlanTable

__all__ = ["export_table"]

_HEADINGS = ("File", "MB", "Top-1", "The network's", "Same predictions", "ms", "Time, relative to none")


def export_table(rows: Sequence[Row]) -> PlanTable | None:
    """A row for each plan and file; None where nothing was exported.

    Args:
        rows: of ``PlanExports``.
    """
    if not rows:
        return None
    cells = []
    for row in rows:
        name = f"{row['format']} {row['precision']}"
        if row["status"] == "failed":
            cells.append([Cell(name, small=f"failed: {row['reason']}"), *(Cell("") for _ in _HEADINGS[1:])])
            continue
        note = "" if row["status"] == "ok" else str(row["status"])
        numbers = [
            _number(row["megabytes"], "{:.2f}"),
            _number(row["top1"], "{:.1f}"),
            _number(row["network_top1"], "{:.1f}"),
            _number(row["agreement"], "{:.1%}"),
            _number(row["milliseconds"], "{:.2f}"),
            ratio_text(row),
        ]
        cells.append([Cell(name, small=note), *(Cell(number, kind="number") for number in numbers)])
    return PlanTable(_HEADINGS, [str(row["plan"]) for row in rows], cells)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
