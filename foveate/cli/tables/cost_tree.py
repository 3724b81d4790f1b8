"""What ``foveate cost`` prints: a tree of modules with what the plan adds and removes, totals, JSON, CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import foveate as fv
from foveate.cli.tables import csv_lines
from foveate.errors import FoveateError
from foveate.io import JsonObject

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["as_json", "changes", "check", "totals", "tree", "write_csv"]

_Row: TypeAlias = Any  # of fv.Cost.modules, whose class the facade does not name

_MARKS = {"added": "+ ", "removed": "- ", "": ""}
_STYLES = {"added": "green", "removed": "red", "": ""}

_PAPER = ("params", "macs")  # all that paper counting has


def check(counting: str, depth: int, *, json: bool, csv: str | None) -> None:
    """Refuse what cannot be printed, before anything is counted.

    Raises:
        FoveateError: the options do not go together, or the depth is below 0.
    """
    if depth < 0:
        raise FoveateError(f"--depth {depth}: it is at least 0, which shows the whole network and what the plan did")
    if csv is not None and counting == "paper":
        raise FoveateError("--csv writes a line for each module, and paper counting has totals only: count exactly")
    csv_lines.check(csv, json=json)


def _columns(cost: fv.Cost) -> dict[str, fv.Cost]:
    """The costs to show, by the heading of their column."""
    if cost.baseline is None:
        return {"": cost}
    return {"with the plan": cost, "without": cost.baseline, "difference": cost - cost.baseline}


def as_json(cost: fv.Cost) -> JsonObject:
    """Every number, and of an exact cost both countings, each module and the operations that are not counted."""
    names = list(cost.labels) if cost.modules else [*_PAPER, "activations"]
    found: JsonObject = {}
    for heading, column in _columns(cost).items():
        found[key := (heading or "cost").replace(" ", "_")] = {name: getattr(column, name) for name in names}
        if column.paper is not None:
            found[key]["paper"] = {name: getattr(column.paper, name) for name in _PAPER}
    if cost.modules:
        # ``uncounted`` is the former name.
        found.update(
            unsupported=cost.unsupported, uncounted=cost.unsupported, modules=[_plain(row) for row in cost.rows]
        )
    return found


def _plain(row: _Row) -> JsonObject:
    """A row as data; without its time where none was measured."""
    return {key: value for key, value in asdict(row).items() if value is not None}


def write_csv(cost: fv.Cost, where: str) -> None:
    """A heading and one line for each module, to a file, or to stdout where that is ``-``.

    Raises:
        FoveateError: the file cannot be written.
    """
    csv_lines.write_csv([_plain(row) for row in cost.rows], where)


def totals(cost: fv.Cost, console: Console) -> Table:
    """A table of the numbers: with the plan, without it, and the difference; in the papers' counting, where it differs.

    Args:
        cost: in either counting.
        console: where it will be printed; numbers are as long as fits, and a narrow one has no papers' counting.
    """
    wide = console.options.update(max_width=1000)
    forms: tuple[Callable[[int], str], ...] = ("{:,}".format, _decimals, _short)
    tables = [_totals(cost, _note(cost), form) for form in forms]
    fitting = (table for table in tables if console.measure(table, options=wide).maximum <= console.width)
    return next(fitting, _totals(cost, "", _short))


def _totals(cost: fv.Cost, note: str, form: Callable[[int], str]) -> Table:
    from rich.table import Table

    columns = _columns(cost)
    table = Table(box=None, pad_edge=False, caption=note or None, caption_justify="left", caption_style="dim")
    table.add_column(f"{cost.counting} counting")
    for heading in (*columns, *(["paper"] if note else [])):
        table.add_column(heading, justify="right")
    names = [name for name in cost.labels if name != "macs_inference" or _infers_otherwise(columns.values())]
    for name in names if cost.modules else _PAPER:
        cells = []
        for heading, column in columns.items():
            number = getattr(column, name)
            cells.append("+" * (heading == "difference" and number >= 0) + form(number))
        if note:
            cells.append(_decimals(getattr(cost.paper, name)) if name in _PAPER else "")
        table.add_row(cost.labels[name], *cells)
    return table


def _infers_otherwise(costs: Iterable[fv.Cost]) -> bool:
    """Whether inference runs other products than the definitions have."""
    return any(cost.macs_inference != cost.macs for cost in costs)


def _note(cost: fv.Cost) -> str:
    """What the papers' counting is; nothing where it makes no difference."""
    columns = [column for column in (cost, cost.baseline) if column is not None and column.paper is not None]
    if all(getattr(column, name) == getattr(column.paper, name) for column in columns for name in _PAPER):
        return ""
    text = "paper: as the compact-CNN papers count"
    if len(columns) == 1:
        return text
    return f"{text}; without the plan {' and '.join(_decimals(getattr(columns[1].paper, name)) for name in _PAPER)}"


def changes(cost: fv.Cost) -> Table | None:
    """What the plan took out and put in, place by place; None without rows or a plan."""
    from rich.table import Table
    from rich.text import Text

    rows = cost.rows
    starts = [row for row in rows if row.change and not any(_inside(row, other) for other in rows)]
    if not starts:
        return None
    table = Table(box=None, pad_edge=False)
    for heading in ("the plan", "", "parameters", "MACs"):
        table.add_column(heading, justify="right" if heading in ("parameters", "MACs") else "left")
    last = ""
    for row in starts:
        above, _, leaf = row.name.rpartition(".")
        site = above if "foveate" in leaf else row.name
        sign = _MARKS[row.change].strip()
        what = Text(f"replaced {row.kind}" if sign == "-" else f"added {row.kind}", _STYLES[row.change])
        table.add_row("" if site == last else site, what, f"{sign}{row.params:,}", f"{sign}{_short(row.macs)}")
        last = site
    return table


def _inside(row: _Row, other: _Row) -> bool:
    return bool(row.change == other.change and row.name.startswith(f"{other.name}."))


def tree(cost: fv.Cost, depth: int, console: Console) -> Table:
    """The modules as a tree: added ones green with +, removed ones red with -; what costs nothing is left out.

    Args:
        cost: an exact one.
        depth: how far down to go; what the plan did is shown wherever it is.
        console: where it will be printed; what does not fit beside the MACs is left out.
    """
    lines = list(_lines(_grown(cost), depth))
    wide = console.options.update(max_width=1000)
    columns = [name for name in _CELLS if name != "time" or cost.modules[0].time_share is not None]
    least = 3 + ("time" in columns)
    tables = (_table(lines, columns[:count]) for count in range(len(columns), least - 1, -1))
    fitting = (t for t in tables if console.measure(t, options=wide).maximum <= console.width)
    return next(fitting, _table(lines, columns[:least], longest=console.width - (30 if least == 3 else 38)))


_CELLS: dict[str, Callable[[_Row], str]] = {
    "parameters": lambda row: _short(row.params),
    "MACs": lambda row: _short(row.macs),
    "share": lambda row: f"{row.share:.1%}",
    "time": lambda row: f"{row.time_share:.1%}",
    "element ops": lambda row: _short(row.element_ops),
    "bytes": lambda row: f"{_short(row.bytes_moved)}B",
}


def _table(lines: list[tuple[str, str, _Row]], columns: list[str], longest: int | None = None) -> Table:
    """The tree, with some columns of numbers, and names up to a length."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("module", no_wrap=True, max_width=longest and max(10, longest))
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True, min_width=max(6, len(heading)))
    for guide, label, row in lines:
        style = _STYLES[row.change]
        name = Text.assemble((guide, "dim"), (_MARKS[row.change] + label, style), (row.kind, style or "dim"))
        table.add_row(name, *(Text(_CELLS[column](row), style) for column in columns))
    return table


@dataclass
class _Node:
    row: _Row
    parts: list[_Node] = field(default_factory=list)

    def changes(self) -> bool:
        """Whether the plan did something here or in a part."""
        return bool(self.row.change) or any(part.changes() for part in self.parts)


def _grown(cost: fv.Cost) -> _Node:
    nodes: dict[tuple[bool, str], _Node] = {}
    for row in cost.rows:
        is_removed, above = row.change == "removed", row.name.rpartition(".")[0]
        nodes[is_removed, row.name] = node = _Node(row)
        if row.name:
            (nodes.get((is_removed, above)) or nodes[False, above]).parts.append(node)
    return nodes[False, ""]


def _lines(node: _Node, depth: int, guide: str = "", branch: str = "") -> Iterator[tuple[str, str, _Row]]:
    """(guide, label, row) of each line."""
    leaf = node.row.name.rpartition(".")[2]
    yield guide + branch, f"{leaf} " if leaf else "", node.row
    parts = [part for part in _parts(node) if _costs(part.row) or part.row.change != node.row.change]
    shown = [part for part in parts if depth > 0 or (part.changes() and not node.row.change)]
    guide += {"": "", "├── ": "│   ", "└── ": "    "}[branch]
    for part in shown:
        yield from _lines(part, depth - 1, guide, "└── " if part is shown[-1] else "├── ")


def _parts(node: _Node) -> list[_Node]:
    """The parts; of a wrapper or a gate those of the attention module that it stands for."""
    for part in node.parts:
        if part.row.change == node.row.change == "added" and part.row.kind == node.row.kind:
            return _parts(part)
    return node.parts


def _costs(row: _Row) -> bool:
    return bool(row.params or row.macs or row.element_ops)


def _short(number: float) -> str:
    """Three digits and a unit: 12.3M."""
    size, unit = _with_unit(number, 999.5)
    decimals = 0 if not unit or abs(size) >= 99.95 else 1 if abs(size) >= 9.995 else 2
    return f"{size:.{decimals}f}{unit}"


def _decimals(number: float) -> str:
    """A unit, and behind the point as many digits as the papers print or more: 277.3455M."""
    size, unit = _with_unit(number, 1000)
    return f"{size:.4f}{unit}" if unit else f"{size:.0f}"


def _with_unit(number: float, most: float) -> tuple[float, str]:
    """A number below ``most``, and what it counts."""
    units = iter(("k", "M", "G", "T"))
    unit = ""
    while abs(number) >= most and unit != "T":
        number, unit = number / 1000, next(units)
    return number, unit
