"""What came of each set: from pytest's report to a row, from rows to the table in the docs."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from xml.etree import ElementTree as ET

from environments import ROOT, sets

RESULTS = ROOT / "docs" / "reports" / "versions.csv"
PAGE = ROOT / "docs" / "reports" / "versions.md"
MARKS = ("<!-- made by tests/versions -->", "<!-- until here -->")
NUMBERS = {"passed": int, "failed": int, "skipped": int, "minutes": float}


@dataclass
class Row:
    """What came of one set. A row without `passed` did not run to its end, and `state` says why."""

    set: str
    python: str = ""
    torch: str = ""
    torchvision: str = ""
    timm: str = ""
    numpy: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    minutes: float = 0.0
    state: str = "not run"
    date: str = ""
    reasons: str = ""


def read(report: Path, row: Row) -> None:
    """Counts and reasons from pytest's report, where one was written."""
    if not report.exists():
        return
    reasons: Counter[str] = Counter()
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 (pytest's own file)
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            row.failed += 1
        elif skipped is not None:
            row.skipped += 1
            reasons[skipped.get("message", "")] += 1
        else:
            row.passed += 1
    row.reasons = "; ".join(f"{text} ({count})" for text, count in reasons.most_common())


def table(rows: Iterable[Row], columns: Iterable[str]) -> str:
    """A Markdown table."""
    columns = list(columns)
    lines = [columns, ["---:" if c in NUMBERS else "---" for c in columns]]
    lines += [[_cell(row, c) for c in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


COLUMNS = tuple(f.name for f in fields(Row))


def _cell(row: Row, column: str) -> str:
    unknown = column in NUMBERS and row.state.startswith("not ")  # no zeros of what was not counted
    return "" if unknown else str(getattr(row, column)).replace("|", r"\|")


def load(file: Path) -> list[Row]:
    """The rows of a CSV file."""
    with file.open(encoding="utf-8", newline="") as text:
        return [Row(**{k: NUMBERS.get(k, str)(v) for k, v in line.items()}) for line in csv.DictReader(text)]


def save(rows: Iterable[Row], file: Path) -> None:
    """Write rows as CSV."""
    with file.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def page(text: str, rows: Iterable[Row], columns: Iterable[str]) -> str:
    """A page with its table made anew between the marks."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{table(rows, columns)}\n{MARKS[1]}{after}"


def write(new: list[Row]) -> None:
    """Put new rows into docs/reports/versions.csv, in the order of sets.toml, and make the table anew."""
    known = {row.set: row for row in [*(load(RESULTS) if RESULTS.exists() else []), *new]}
    rows = [known.get(name, Row(name)) for name in sets()]
    save(rows, RESULTS)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), rows, COLUMNS), encoding="utf-8")
