"""The page of the papers' tables: as they are printed, with a mark at each number that was worked out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from foveate.errors import FoveateError
from foveate.io import markdown_table, write_atomically
from foveate.studies.reproduction.figures import PICTURES, TABLE, dots, draw
from foveate.studies.reproduction.paper_tables import COLUMNS, Claim, Number, Table, spearman
from foveate.studies.reproduction.results import (
    DIFFERS,
    EQUAL,
    INCONSISTENT,
    MEASURED,
    MEASUREMENT,
    TRAINING,
    TRUNCATED,
    UNBUILT,
    UNPUBLISHED,
    Cell,
    Reproduction,
    where,
)

__all__ = ["page", "write_page"]

COMMAND = "foveate reproduce --page docs/reports/reproduce.md --measured benchmarks/tradeoff.csv"
MARKS = {EQUAL: "✓", TRUNCATED: "✓", INCONSISTENT: "✗", UNPUBLISHED: "?", DIFFERS: "≠", UNBUILT: "–"}
RULES = {
    "exact": "every parameter, every multiply-add of the real modules",
    "paper": "as the ULSAM paper counts",
    "mmcv": "the rule of mmcv's counter: modules only, trained parameters only, plus biases, ReLU, pooling, norms",
    "fvcore": "multiply-adds, and as fvcore 2 for each element of a batch norm, 5 of a layer norm; not its pooling and "
    "resizing",
    "fvcore, training": "the same for a network in training mode: 5 for each element of a batch norm, too",
    "arithmetic": "a difference, a saving or a count, worked out from other numbers",
}
PICTURE_TEXTS = {
    "reproduce_flops.png": "ImageNet accuracy against multiply-adds. The accuracies are the papers'; the multiply-adds "
    "are counted here.",
    "reproduce_memory.png": "ImageNet accuracy against peak memory. Both are as the papers print them.",
}


def write_page(result: Reproduction, file: Path, command: str = COMMAND) -> tuple[Path, ...]:
    """Write the page, and its pictures into ``images`` beside it.

    Args:
        result: all tables.
        file: the page.
        command: the line that made it, to be shown.

    Returns:
        The files written; the page is the last.

    Raises:
        FoveateError: the trade-off table is missing, or a file cannot be written.
    """
    if TABLE not in {table.name for table in result.tables}:
        raise FoveateError(f"the page shows all tables: ask for it without naming one, or for {TABLE!r}")
    pictures = tuple(file.parent / "images" / name for name in PICTURES)
    for picture, (column, title) in zip(pictures, PICTURES.values(), strict=True):
        draw(dots(result, column), title, picture)
    write_atomically(file, page(result, command))
    return (*pictures, file)


def page(result: Reproduction, command: str = COMMAND) -> str:
    """The page as Markdown."""
    lines = [
        "# The papers' tables",
        "",
        f"Written by `{command}`; a test holds the numbers to the code.",
        "",
        "Every table of the papers and talks that this project began with, and one row of a poster, as it is printed.",
        "Each cost was counted again on the real network.",
        "",
        f"**{result}.**",
        "",
        "* ✓ ours, rounded to the printed digits, is the printed number, or the printed digits are ours, truncated.",
        "* ✗ the print cannot be right; the reason is below the table.",
        "* ? too little is published to count the same thing; what is missing is below the table.",
        "* – there is no such network here to count.",
        "* Numbers without a mark are the papers' own: accuracies, which need training, and speeds and memory, which",
        "  need the authors' machine; below the table of trade-offs they stand beside those of another machine.",
        "  [What was found of the claims about accuracy](#claims-about-accuracy) stands before the tables.",
        "",
        *markdown_table(
            ("table", "cells", "computable", "✓", "✗", "?", "–", "to train", "speed, memory"), _summary(result)
        ),
        "",
        "What reproduced numbers are counted by:",
        "",
        *markdown_table(("counting", "cells", "rule"), _rules(result)),
        "",
    ]
    lines += _claims(result)
    for table in result.tables:
        lines += _section(table, result.of(table.name))
    return "\n".join(lines).rstrip() + "\n"


def _summary(result: Reproduction) -> Iterator[Sequence[str]]:
    for table in result.tables:
        part = result.of(table.name)
        counts = Counter(part.counts())
        numbers = [len(part.cells), len(part.computed), counts[EQUAL] + counts[TRUNCATED]]
        numbers += [counts[verdict] for verdict in (INCONSISTENT, UNPUBLISHED, UNBUILT, TRAINING)]
        numbers.append(counts[MEASURED] + counts[MEASUREMENT])
        yield (f"[{table.name}](#{table.name})", *(str(number) if number else "" for number in numbers))


def _rules(result: Reproduction) -> Iterator[Sequence[str]]:
    for name, number in result.rules().items():
        yield name, str(number), RULES[name]


def _claims(result: Reproduction) -> Iterator[str]:
    rows = [
        (f"[{table.name}](#{table.name})", claim.text, _found(claim), claim.because)
        for table in result.tables
        for claim in table.claims
    ]
    yield from ("## Claims about accuracy", "")
    yield from (
        "What the tables' accuracies are printed to show, and what experiments with seeds found:",
        "",
    )
    yield from (*markdown_table(("table", "claim", "found here", "why"), rows), "")


def _found(claim: Claim) -> str:
    return f"[{claim.found}](evidence.md#{claim.section})" if claim.section else claim.found


def _section(table: Table, part: Reproduction) -> Iterator[str]:
    yield from (f"## {table.name}", "")
    yield from (f"{table.title}. {table.source}. [{table.paper}]({table.url}).", "")
    if table.note:
        yield from (table.note, "")
    cells = {(cell.number, cell.column): cell for cell in part.cells}
    headings = [f"{column.name}, {column.unit}" if column.unit else column.name for column in table.columns]
    rows = [
        [row.label, *(_marked(cells.get((row.number, column.name))) for column in table.columns)] for row in table.rows
    ]
    yield from (*markdown_table(("", *headings), rows), "")
    listed = [cell for cell in part.computed if cell.counting not in ("exact", "arithmetic") or cell.verdict != EQUAL]
    if listed:
        columns = ("row", "column", "printed", "ours", "counting", "exact", "verdict")
        yield from ("Not plainly equal in exact counting:", "")
        yield from (
            *markdown_table(columns, map(_listed, listed)),
            "",
        )
    notes = [f"* {where(cells)}. {reason}" for reason, cells in part.reasons().items()]
    if notes:
        yield from (*notes, "")
    if table.name == TABLE:
        for name in PICTURES:
            yield from (f"![{PICTURE_TEXTS[name]}](images/{name})", "", f"*{PICTURE_TEXTS[name]}*", "")
        yield from _measured(part)


def _marked(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell.printed} {MARKS.get(cell.verdict, '')}".rstrip()


def _listed(cell: Cell) -> Sequence[str]:
    return cell.row, cell.column, cell.printed, cell.ours, cell.counting, cell.exact, cell.verdict


def _measured(part: Reproduction) -> Iterator[str]:
    """Speeds and memory beside the printed ones, each for one of ResNet-50, and how the orders agree."""
    columns = {column.kind: column.name for column in part.tables[0].columns if column.kind in COLUMNS}
    cells = {(cell.row, cell.kind): cell for cell in part.cells if cell.kind in COLUMNS}
    rows = [row.label for row in part.tables[0].rows]
    done = {kind: [row for row in rows if cells[row, kind].verdict == MEASURED] for kind in columns}
    if not any(done.values()):
        return
    first = {kind: Number.parse(cells[rows[0], kind].printed).value for kind in columns}
    theirs = {key: float(Number.parse(cell.printed).value / first[key[1]]) for key, cell in cells.items()}
    yield from ("### Speed and memory on another machine", "")
    yield from (
        "Images/s and peak memory in inference, each relative to ResNet-50. Here: one thread of a CPU, float32; each",
        "network took turns with ResNet-50, and its memory was drawn on from small batches to the paper's 256 images.",
        "`benchmarks/tradeoff.csv` has the machine, the sizes and the quartiles.",
        "",
    )
    for kind, name in columns.items():
        ours = [float(cells[row, kind].ours) for row in done[kind]]
        order = spearman(ours, [theirs[row, kind] for row in done[kind]])
        yield f"* {name}: {len(ours)} networks, Spearman's rank correlation with the paper's order {order:.2f}."
    heads = [f"{name}, {whose}" for name in columns.values() for whose in ("paper", "here")]
    table = [
        [row, *(text for kind in columns for text in (f"{theirs[row, kind]:.2f}", cells[row, kind].ours))]
        for row in rows
    ]
    reasons = [f"* {row}: {cells[row, 'speed'].reason}" for row in rows if row not in done["speed"]]
    yield from ("", *markdown_table(("", *heads), table), "")
    if reasons:
        yield from ("Not measured:", "", *reasons, "")
