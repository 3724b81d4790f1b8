"""A table for a terminal, with plans in the first column: what does not fit beside them is left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from foveate.errors import printable

__all__ = ["terminal_table"]

_WIDTH = 80  # columns of a terminal, where none is named
_LEAST = 16  # columns that a plan's name has at least; a longer one goes on in the next line


def terminal_table(
    plans: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    *,
    title: str,
    heading: str = "plan",
    leave_out: Sequence[str] = (),
    ends: Collection[int] = (),
    console: Console | None = None,
) -> Table:
    """The table with as many columns as fit.

    Args:
        plans: the first column.
        columns: the others, numbers, by heading.
        title: above it.
        heading: of the first column.
        leave_out: headings that a narrow terminal lacks, the first of them first.
        ends: rows that a line stands below.
        console: where it will be printed; without it a terminal of 80 columns.
    """
    console = console or Console(width=_WIDTH)
    for count in range(len(leave_out) + 1):
        shown = [name for name in columns if name not in leave_out[:count]]
        table = Table(title=escape(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(heading, overflow="fold", min_width=_LEAST)
        for name in shown:
            widest = max(map(cell_len, (name, *columns[name])))  # a number is never cut
            table.add_column(name, justify="right", no_wrap=True, min_width=widest)
        for number, plan in enumerate(plans):
            cells = (columns[name][number] for name in shown)
            table.add_row(escape(printable(plan)), *cells, end_section=number in ends)
        if Measurement.get(console, console.options.update(max_width=1000), table).minimum <= console.width:
            break
    return table
