"""What came of the papers' tables: a cell for each printed number, counts, the terminal's tables, CSV."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from foveate.html import html_lines, html_table
from foveate.io import JsonObject, csv_text, write_atomically
from foveate.studies.reproduction.paper_tables import Table

__all__ = ["VERDICTS", "Cell", "Reproduction", "where"]

EQUAL, TRUNCATED = "equal", "equal, truncated"
INCONSISTENT, UNPUBLISHED, DIFFERS = "paper inconsistent", "not published", "differs"
UNBUILT, TRAINING, MEASUREMENT, MEASURED = "not built", "needs training", "needs a measurement", "measured"
COMPUTED = (EQUAL, TRUNCATED, INCONSISTENT, UNPUBLISHED, DIFFERS)
VERDICTS = (*COMPUTED, UNBUILT, TRAINING, MEASUREMENT, MEASURED)
_STYLES = {INCONSISTENT: "yellow", UNPUBLISHED: "yellow", DIFFERS: "bold red", UNBUILT: "dim"}
_WORDS = {
    INCONSISTENT: "{} inconsistent in the paper",
    UNPUBLISHED: "{} too little published for",
    DIFFERS: "{} different",
    UNBUILT: "{} of networks not built here",
    TRAINING: "{} need training",
    MEASUREMENT: "{} need a measurement",
    MEASURED: "{} measured",
}


_WAYS = {
    "exact": "in exact counting",
    "mmcv": "by mmcv's rule",
    "fvcore": "by fvcore's rule",
    "fvcore, training": "by fvcore's rule in training mode",
    "arithmetic": "by arithmetic",
}


@dataclass(frozen=True)
class Cell:
    """One printed number.

    Args:
        table: its table.
        row: its row.
        column: its column.
        printed: the text.
        unit: of the printed number.
        kind: "cost", "accuracy", "speed", "memory" or "statement".
        ours: our number, to one digit more than is printed; "" where there is none. Of a speed or a memory it is
            relative to ResNet-50.
        counting: the rule that ``ours`` is counted by; see ``foveate.studies.reproduction.counters``.
        exact: the number in ``exact`` counting.
        verdict: one of ``VERDICTS``.
        reason: of a verdict that is not plain.
        how: what was counted: a name and its arguments.
        source: who printed it.
        paper: the paper's title, arXiv number and, where the print has one, the number of the table.
        number: of the row in its table, from 1.
    """

    table: str
    row: str
    column: str
    printed: str
    unit: str
    kind: str
    ours: str = ""
    counting: str = ""
    exact: str = ""
    verdict: str = TRAINING
    reason: str = ""
    how: str = ""
    source: str = ""
    paper: str = ""
    number: int = 0


@dataclass(frozen=True)
class Reproduction:
    """The cells of one table or of several, in the order of print.

    Args:
        tables: the papers' tables.
        cells: each printed number with ours beside it.
    """

    tables: tuple[Table, ...]
    cells: tuple[Cell, ...]

    def of(self, table: str) -> Reproduction:
        """The part of one table."""
        return Reproduction(
            tuple(t for t in self.tables if t.name == table), tuple(c for c in self.cells if c.table == table)
        )

    @property
    def computed(self) -> tuple[Cell, ...]:
        """The cells that were counted or worked out."""
        return tuple(cell for cell in self.cells if cell.verdict in COMPUTED)

    def counts(self) -> dict[str, int]:
        """How many cells have each verdict; only those that occur, in the order of ``VERDICTS``."""
        found = Counter(cell.verdict for cell in self.cells)
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    def rules(self) -> dict[str, int]:
        """How many of the reproduced cells come out by each way of counting."""
        found = Counter(cell.counting for cell in self.cells if cell.verdict in (EQUAL, TRUNCATED))
        return dict(found.most_common())

    def counted_by(self) -> dict[str, int]:
        """How many of the reproduced cells come out by each way of counting, in words; the most first."""
        found = Counter(_counted_by(cell) for cell in self.cells if cell.verdict in (EQUAL, TRUNCATED))
        return dict(found.most_common())

    def __str__(self) -> str:
        counts = Counter(self.counts())
        reproduced = f"{counts[EQUAL] + counts[TRUNCATED]} of {len(self.computed)} computable ones reproduced"
        ways = [f"{number} {way}" for way, number in self.counted_by().items()]
        parts = [f"{reproduced} ({', '.join(ways)})" if ways else reproduced]
        parts += [words.format(counts[verdict]) for verdict, words in _WORDS.items() if counts[verdict]]
        return f"{len(self.cells)} printed numbers: {', '.join(parts)}"

    def as_dicts(self) -> list[JsonObject]:
        """The cells as plain data."""
        return [asdict(cell) for cell in self.cells]

    def as_csv(self) -> str:
        """One line for each cell."""
        return csv_text(self.as_dicts(), list(Cell.__dataclass_fields__))

    def write_csv(self, file: str | os.PathLike[str]) -> Path:
        """Write one line for each cell.

        Raises:
            FoveateError: the file cannot be written.
        """
        return write_atomically(Path(file), self.as_csv())

    def reasons(self) -> dict[str, list[Cell]]:
        """What is said of cells that were counted or could not be, each once, and of which."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            if cell.reason and cell.verdict in (*COMPUTED, UNBUILT):
                found.setdefault(cell.reason, []).append(cell)
        return found

    def print(self, console: Console | None = None) -> None:
        """Print the cells of one table, or of several a line for each, and the count."""
        console = console or Console()
        if len(self.tables) == 1:
            table = self.tables[0]
            console.print(f"[bold]{escape(table.title)}[/]. {escape(table.source)}.", highlight=False)
            if table.note:
                console.print(escape(table.note), style="dim", highlight=False)
            grid = self._detail()
            if grid.row_count:
                console.print(grid)
            for reason, cells in self.reasons().items():
                console.print(f"[bold]{escape(where(cells))}[/]: {escape(reason)}", highlight=False)
            for claim in table.claims:
                text = f"[bold]{escape(claim.text)}[/] Found here: {claim.found}. {escape(claim.because)}"
                console.print(text, highlight=False)
        else:
            console.print(self._overview())
        console.print(str(self), highlight=False)

    def _repr_html_(self) -> str:
        headings = ("table", "row", "column", "printed", "ours", "counting", "verdict")
        rows = [
            [getattr(cell, name) for name in headings]
            for cell in self.cells
            if cell.verdict not in (TRAINING, MEASUREMENT)
        ]
        reasons = [f"{where(cells)}: {reason}" for reason, cells in self.reasons().items()]
        return html_lines(str(self)) + html_table(headings, rows, right=(3, 4)) + html_lines("", reasons)

    def _detail(self) -> Grid:
        grid = Grid(box=None, pad_edge=False)
        for heading in ("row", "column", "printed", "ours", "counting", "verdict"):
            right = heading in ("printed", "ours")
            grid.add_column(heading, justify="right" if right else "left", no_wrap=heading != "row")
        for cell in self.cells:
            if cell.verdict not in (TRAINING, MEASUREMENT):
                words = (cell.row, cell.column, cell.printed, cell.ours, cell.counting, cell.verdict)
                grid.add_row(*map(escape, words), style=_STYLES.get(cell.verdict, ""))
        return grid

    def _overview(self) -> Grid:
        grid = Grid(box=None, pad_edge=False, collapse_padding=True)
        grid.add_column("table", no_wrap=True)
        headings = ("cells", "computable", "equal", "incon-\nsistent", "unpub-\nlished", "not\nbuilt", "to\ntrain")
        for heading in (*headings, "to\nmeasure"):
            grid.add_column(heading, justify="right")
        for table in self.tables:
            part = self.of(table.name)
            counts = Counter(part.counts())
            numbers = [len(part.cells), len(part.computed), counts[EQUAL] + counts[TRUNCATED]]
            numbers += [counts[verdict] for verdict in (INCONSISTENT, UNPUBLISHED, UNBUILT, TRAINING)]
            numbers.append(counts[MEASUREMENT] + counts[MEASURED])
            grid.add_row(table.name, *(str(number) if number else "" for number in numbers))
        return grid


def _counted_by(cell: Cell) -> str:
    """The way of counting, in words. As the ULSAM paper counts, a network starts from what its authors print for it."""
    if cell.counting == "paper":
        return "with the paper's own baseline" if cell.how.startswith("network(") else "by the paper's formula"
    return _WAYS[cell.counting]


def where(cells: Sequence[Cell]) -> str:
    """Which cells, in a few words: the rows, and the columns."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*((c.row, c.column) for c in cells), strict=True))
    return f"{', '.join(rows)} ({', '.join(columns)})"
