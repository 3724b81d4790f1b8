"""The tables of the report, as data for its template: the comparison, each run, and the statistics behind verdicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.io import Row
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.comparison.statistics import p_text
from foveate.studies.reporting.charts.scatter import is_number, kind_of

__all__ = [
    "Cell",
    "Line",
    "PlanTable",
    "Runs",
    "comparison",
    "has_verdicts",
    "minus",
    "power_lines",
    "runs",
    "signed",
    "statistics",
]

# Keys that belong into another table, or into a cell of another key.
_ELSEWHERE = {
    *("plan", "difference_low", "difference_high"),
    *("bootstrap_low", "bootstrap_high", "p", "p_holm", "only_plan_right", "only_baseline_right", "p_mcnemar"),
    *("seed_sd", "seeds_needed", "images_needed", "smallest_difference", "sign", "verdict_text", "power_text"),
    *("margin", "p_not_worse", "p_equivalent", "p_worse"),
}
_STEPS = 3  # shades of a colour
_RIGHT_OR_WRONG = ("Right alone: plan / first", "p, McNemar")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: what it says.
        small: a second line, in grey.
        whole: whether the second line is never broken.
        kind: classes of the cell: "number", "whole", a shade.
        dot: the class of a dot before the text, or "".
    """

    text: str
    small: str = ""
    whole: bool = False
    kind: str = ""
    dot: str = ""


@dataclass(frozen=True)
class PlanTable:
    """A table with a row for each plan, or for what ``first`` names; on a phone each row becomes a card."""

    headings: Sequence[str]
    plans: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    first: str = "Plan"

    @property
    def label(self) -> str:
        """What the table is, for those who do not see it."""
        return f"{self.first}: {', '.join(self.headings)}"

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Each heading and its class."""
        kinds = [any(cell.kind.startswith("number") for cell in column) for column in zip(*self.rows, strict=True)]
        return [(heading, "number" if number else "") for heading, number in zip(self.headings, kinds, strict=True)]


@dataclass(frozen=True)
class Line:
    """A plan's verdict in words, with what comes before and below it."""

    plan: str
    text: str
    kind: str
    small: str = ""


@dataclass(frozen=True)
class Runs:
    """The table of all runs, and the classes and texts of the legend of its shades."""

    table: PlanTable
    swatches: Sequence[tuple[str, str]]


def comparison(rows: Sequence[Row], measure: Measure = TOP1) -> PlanTable | None:
    """Cost, score and verdict of each plan; None without plans."""
    if not rows:
        return None
    second = measure.second[0]
    columns: dict[str, tuple[str, Callable[[Row], Cell]]] = {
        "params": ("Parameters", lambda row: _cost(row, rows[0], "params", "{:,}".format)),
        "macs": ("MACs", lambda row: _cost(row, rows[0], "macs", _macs)),
        measure.key: (measure.heading, lambda row: _percent(row, measure.key)),
        second: (measure.second_heading, lambda row: _percent(row, second)),
        "difference": ("Difference, points", _difference),
        "verdict": ("Verdict", lambda row: Cell(str(row.get("verdict") or ""))),
        "margin_verdict": ("Margin", lambda row: Cell(str(row.get("margin_verdict") or ""))),
        "ece": ("ECE %", lambda row: Cell(f"{row['ece']:.1f}" if is_number(row.get("ece")) else "")),
        "learning_rate": ("Learning rate", lambda row: Cell(_plain(row.get("learning_rate")))),
        "images_per_second": ("Training, images/s", lambda row: Cell(_whole(row.get("images_per_second")))),
    }
    for key in (key for row in rows for key in row if key not in _ELSEWHERE and not key.endswith("_per_seed")):
        columns.setdefault(key, (key.replace("_", " "), _column(key)))
    has_lines = any(row.get("verdict_text") for row in rows)  # then the verdicts have lines of their own below
    shown = {key: column for key, column in columns.items() if any(row.get(key) is not None for row in rows)}
    shown = {key: column for key, column in shown.items() if not (has_lines and key in ("verdict", "margin_verdict"))}
    numbers = {key: key not in ("verdict", "margin_verdict") and _numeric(rows, key) for key in shown}
    cells = [
        [_of_kind(cell_of(row), "number" if numbers[key] else "") for key, (_, cell_of) in shown.items()]
        for row in rows
    ]
    return PlanTable([name for name, _ in shown.values()], _plans(rows), cells)


def power_lines(rows: Sequence[Row]) -> list[Line]:
    """For each plan that was tested, which difference this many seeds and images show."""
    return [
        Line(str(row.get("plan", "")), minus(str(row["power_text"])), kind_of(row.get("sign")))
        for row in rows
        if row.get("power_text")
    ]


def has_verdicts(rows: Sequence[Row]) -> bool:
    """Whether colours mean something."""
    return any(row.get("sign") is not None for row in rows)


def runs(rows: Sequence[Row], seeds: Sequence[int], measure: Measure = TOP1) -> Runs | None:
    """The score of every run, shaded by its difference to the first plan's run with the same seed.

    The shades are not those of verdicts: a single run is no evidence.
    """
    key = f"{measure.key}_per_seed"
    base = rows[0].get(key) if rows else None
    if not base or len(base) < 2 or any(len(row.get(key) or ()) != len(base) for row in rows):
        return None
    gaps = [[own - other for own, other in zip(row[key], base, strict=True)] for row in rows]
    intervals = [[row.get(f"difference_{end}") for end in ("low", "high")] for row in rows]
    widths = [(high - low) / 2 for low, high in intervals if is_number(low) and is_number(high)]
    most = max([abs(gap) for row in gaps for gap in row] + widths)
    cells = [
        [
            Cell(f"{value:.1f}", signed(gap, 1) if k else "", kind=f"number {_shade(gap, most)}".strip())
            for gap, value in zip(gaps[k], row[key], strict=True)
        ]
        for k, row in enumerate(rows)
    ]
    scale = [most * (step - 0.5) / _STEPS for step in range(1, _STEPS + 1)]
    swatches = [(f"down{k + 1}", f"−{scale[k]:.1f} or less") for k in reversed(range(_STEPS))]
    swatches += [("", f"less than {scale[0]:.1f} apart")]
    swatches += [(f"up{k + 1}", f"+{scale[k]:.1f} or more") for k in range(_STEPS)]
    return Runs(PlanTable([f"Seed {seed}" for seed in seeds], _plans(rows), cells), swatches)


def statistics(rows: Sequence[Row]) -> PlanTable | None:
    """What the verdicts rest on; None where no plan was tested."""
    found = [row for row in rows if is_number(row.get("p_holm"))]
    if not found:
        return None
    columns: dict[str, Callable[[Row], Cell]] = {
        "Difference [95%]": _difference,
        "p": lambda row: Cell(_p(row, "p")),
        "p, Holm": lambda row: Cell(_p(row, "p_holm")),
        "Bootstrap [95%]": lambda row: Cell(f"[{signed(row['bootstrap_low'], 1)}, {signed(row['bootstrap_high'], 1)}]"),
        "Right alone: plan / first": lambda row: Cell(f"{row['only_plan_right']:,} / {row['only_baseline_right']:,}"),
        "p, McNemar": lambda row: Cell(_p(row, "p_mcnemar")),
        "SD of seeds": lambda row: Cell(f"{row['seed_sd']:.1f}" if is_number(row.get("seed_sd")) else ""),
        "Smallest shown": lambda row: Cell(_smallest(row)),
        "Needed: seeds / images": lambda row: Cell(f"{_count(row, 'seeds_needed')} / {_count(row, 'images_needed')}"),
    }
    if not any(is_number(row.get("p_mcnemar")) for row in found):  # images are neither right nor wrong
        columns = {name: of for name, of in columns.items() if name not in _RIGHT_OR_WRONG}
    cells = [[_of_kind(cell_of(row), "number") for cell_of in columns.values()] for row in found]
    return PlanTable(list(columns), _plans(found), cells)


def margins(rows: Sequence[Row]) -> PlanTable | None:
    """Whether each plan is worse by more than the margin; None where none was asked for."""
    found = [row for row in rows if is_number(row.get("margin"))]
    if not found:
        return None
    headings = ["Margin, points", "Difference [95%]", "Verdict", "p, not worse", "p, equivalent", "p, worse"]
    keys = ("p_not_worse", "p_equivalent", "p_worse")
    cells = [
        [
            Cell(f"{row['margin']:g}", kind="number"),
            _of_kind(_difference(row), "number"),
            Cell(str(row["margin_verdict"])),
            *(Cell(_p(row, key), kind="number") for key in keys),
        ]
        for row in found
    ]
    return PlanTable(headings, _plans(found), cells)


def signed(value: Any, digits: int) -> str:
    """With its sign, and a true minus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # + 0.0: no negative zero


def minus(text: str) -> str:
    """A text with a true minus before each number."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def _plans(rows: Sequence[Row]) -> list[str]:
    return [str(row.get("plan", "")) for row in rows]


def _of_kind(cell: Cell, kind: str) -> Cell:
    return Cell(cell.text, cell.small, cell.whole, kind, cell.dot)


def _column(key: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(_plain(row.get(key)))


def _shade(gap: float, most: float) -> str:
    step = round(_STEPS * abs(gap) / most) if most else 0
    return f"{'up' if gap > 0 else 'down'}{step}" if step else ""


def _p(row: Row, key: str) -> str:
    return p_text("", row[key]).removeprefix(" = ").strip()


def _smallest(row: Row) -> str:
    value = row.get("smallest_difference")
    return "–" if not is_number(value) or value > 100 else f"{value:.1f}"


def _count(row: Row, key: str) -> str:
    return f"{row[key]:,}" if is_number(row.get(key)) else "–"


def _numeric(rows: Sequence[Row], key: str) -> bool:
    return all(row.get(key) is None or is_number(row[key]) for row in rows)


def _plain(value: object) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _whole(value: object) -> str:
    return f"{value:,.0f}" if is_number(value) else ""


def _macs(value: float) -> str:
    return f"{value / 1e6:,.1f} M"


def _cost(row: Row, first: Row, key: str, text: Callable[[Any], str]) -> Cell:
    value, before = row.get(key), first.get(key)
    if not is_number(value):
        return Cell("")
    if row is first or not is_number(before) or not before:
        return Cell(text(value))
    return Cell(text(value), f"{signed(100 * (value / before - 1), 2)} %", whole=True)


def _percent(row: Row, key: str) -> Cell:
    if not is_number(row.get(key)):
        return Cell("")
    seeds = [value for value in row.get(f"{key}_per_seed") or () if is_number(value)]
    return Cell(f"{row[key]:.1f}", ", ".join(f"{value:.1f}" for value in seeds) if len(seeds) > 1 else "")


def _difference(row: Row) -> Cell:
    if not is_number(row.get("difference")):
        return Cell("")
    ends = [row.get(f"difference_{end}") for end in ("low", "high")]
    interval = f"[{', '.join(signed(end, 1) for end in ends)}]" if all(map(is_number, ends)) else ""
    return Cell(signed(row["difference"], 1), interval, whole=True)
