"""The papers' tables, cell by cell: the printed number, ours, and what comes of it.

A cell that is a cost is counted on the real network. It is ``equal`` when ours, rounded to the printed digits, is the
printed number; ``equal, truncated`` when the printed digits are ours without the rest, as some of the papers print.
What cannot be equal is declared in the tables with the reason; anything else ``differs``. Exact counting is tried
first, then the rule that the table names for the row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from foveate.studies.reproduction.counters import count
from foveate.studies.reproduction.paper_tables import (
    COLUMNS,
    Column,
    Measured,
    Number,
    Row,
    Table,
    names,
    read_measured,
    read_table,
)
from foveate.studies.reproduction.results import (
    DIFFERS,
    EQUAL,
    INCONSISTENT,
    MEASURED,
    MEASUREMENT,
    TRUNCATED,
    UNBUILT,
    UNPUBLISHED,
    Cell,
    Reproduction,
)

__all__ = ["reproduce"]


def reproduce(table: str | None = None, *, measured: str | os.PathLike[str] | None = None) -> Reproduction:
    """Work out again what the papers print.

    Args:
        table: one table by name; without it all of them.
        measured: a CSV of ``benchmarks/tradeoff.py``, whose speeds and memory stand beside the printed ones.

    Returns:
        A cell for each printed number.

    Raises:
        FoveateError: there is no such table, or the CSV cannot be read.
    """
    asked = (table,) if table is not None else names()
    found = tuple(sorted(map(read_table, asked), key=lambda one: one.order))
    taken = None if measured is None else read_measured(measured)
    return Reproduction(found, tuple(cell for one in found for cell in _cells(one, taken)))


def _cells(table: Table, measured: Mapping[str, Measured] | None) -> Iterator[Cell]:
    for row in table.rows:
        for column, printed in zip(table.columns, row.printed, strict=True):
            if printed in ("", "-"):
                continue
            kind = row.kind or column.kind
            cell = Cell(
                *(table.name, row.label, column.name, printed, column.unit, kind),
                source=table.source,
                paper=table.paper,
                number=row.number,
            )
            if kind in COLUMNS:
                yield _beside(cell, None if measured is None else measured.get(row.name))
            else:
                yield cell if kind == "accuracy" else _judged(cell, row, column)


def _beside(cell: Cell, measured: Measured | None) -> Cell:
    """A speed or a memory beside what was measured."""
    ratio = None if measured is None else measured.ratio(cell.kind)
    if ratio is not None:
        return replace(cell, verdict=MEASURED, ours=f"{ratio:.2f}", reason="relative to ResNet-50, on another machine")
    return replace(cell, verdict=MEASUREMENT, reason="" if measured is None else measured.reason)


def _judged(cell: Cell, row: Row, column: Column) -> Cell:
    """A cost or a statement with ours, the verdict and why."""
    if row.ours is None:
        return replace(cell, verdict=UNBUILT, reason=row.unbuilt)
    number = Number.parse(cell.printed, row.digits)
    if cell.kind == "statement":
        counting, exact, value = "arithmetic", None, _statement(row.ours)
    else:
        counting, exact = "exact", _value(row.ours, column, "exact")
        value = exact
        if not number.is_rounded(exact) and row.counting != "exact":
            counting, value = row.counting, _value(row.ours, column, row.counting)
    verdict, reason = _verdict(row, column, number, value)
    return replace(
        cell,
        ours=number.text(value),
        counting=counting,
        exact="" if exact is None else number.text(exact),
        verdict=verdict,
        reason=row.caveat if verdict == EQUAL and counting == "paper" else reason,
        how=_call(row.ours),
    )


def _verdict(row: Row, column: Column, number: Number, value: Decimal) -> tuple[str, str]:
    """The verdict and, where it is declared, why."""
    if number.is_rounded(value):
        return EQUAL, ""
    if number.is_truncated(value):
        return TRUNCATED, ""
    for verdict, reasons in ((INCONSISTENT, row.inconsistent), (UNPUBLISHED, row.unpublished)):
        if column.name in reasons:
            return verdict, reasons[column.name]
    return DIFFERS, ""


def _call(subject: Mapping[str, object]) -> str:
    """What is counted, as one would write a call."""
    arguments = (f"{key}={value!r}" for key, value in subject.items() if key != "of")
    return f"{subject['of']}({', '.join(arguments)})"


def _measured(subject: Mapping[str, object], column: Column, counting: str) -> int:
    number: int = getattr(count(subject, counting), column.measure)
    return number


def _value(subject: Mapping[str, object], column: Column, counting: str) -> Decimal:
    """What the column's measure of a subject is, in its unit."""
    value = Decimal(_measured(subject, column, counting))
    if column.relative_to is not None:
        return value / _measured(column.relative_to, column, counting)
    return value / column.scale


def _statement(ours: Mapping[str, Any]) -> Decimal:
    """A number that a text states, worked out from other cells, from costs or by counting."""
    arguments = {key: value for key, value in ours.items() if key != "of"}
    work_out: dict[str, Callable[..., Decimal]] = {
        "difference": _difference,
        "saving": _saving,
        "pairs": _pairs,
        "unit": _unit,
    }
    return work_out[ours["of"]](**arguments)


def _difference(minuend: Sequence[Any], subtrahend: Sequence[Any]) -> Decimal:
    """Of two printed numbers, each (table, number of the row, column)."""
    return _printed(*minuend) - _printed(*subtrahend)


def _printed(table: str, number: int, column: str) -> Decimal:
    found = read_table(table)
    position = [c.name for c in found.columns].index(column)
    return Number.parse(found.rows[number - 1].printed[position]).value


def _saving(before: Mapping[str, object], after: Mapping[str, object], measure: str) -> Decimal:
    """Percent, counted as the paper counts."""
    less, whole = (Decimal(getattr(count(subject, "paper"), measure)) for subject in (after, before))
    return 100 * (whole - less) / whole


def _pairs(places: int, stride: int) -> Decimal:
    """Causal pairs of dense attention for each of strided attention."""
    dense = places * (places + 1) // 2
    return Decimal(dense) / sum(place // stride + 1 for place in range(places))


def _unit(value: str, measure: str, subject: Mapping[str, object]) -> Decimal:
    """The power of ten that makes a printed value of the real one."""
    times = Decimal(getattr(count(subject), measure)) / Decimal(value)
    return Decimal(10) ** int(times.log10().to_integral_value())
