"""The tables of the papers as they are printed: data with its source, read from ``tables/*.toml``.

A row says what it is in data (``ours``), by a name and plain arguments that ``counters.py`` knows. Nothing in a
file is executed. Beside them the speeds and memory that ``benchmarks/tradeoff.py`` measured.
"""

from __future__ import annotations

import csv
import os
import re
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from importlib import resources
from pathlib import Path

from foveate.errors import FoveateError, near

__all__ = [
    "COLUMNS",
    "FOUND",
    "Claim",
    "Column",
    "Measured",
    "Number",
    "Row",
    "Table",
    "names",
    "read_measured",
    "read_table",
    "spearman",
]

_NUMBER = re.compile(r"(?:(?P<plain>\d+(?:\.(?P<part>\d+))?)(?:M|%|×| times)?|10\^(?P<power>\d+))")
_FOLDER = "tables"


@dataclass(frozen=True)
class Number:
    """A printed number and the last digit that is printed.

    Args:
        value: the number.
        digits: digits behind the point; -1 is a number of tens.
        power: whether it is printed as a power of ten.
    """

    value: Decimal
    digits: int
    power: bool = False

    @classmethod
    def parse(cls, text: str, digits: int | None = None) -> Number:
        """Read "25.6", "4.2M", "82.16×", "9.1%", "30 times" or "10^9".

        Raises:
            FoveateError: it is none of these.
        """
        found = _NUMBER.fullmatch(text)
        if found is None:
            raise FoveateError(f"{text!r} is not a printed number: write it as 25.6, 4.2M, 82.16×, 9.1% or 10^9")
        if found["power"]:
            return cls(Decimal(10) ** int(found["power"]), 0, power=True)
        return cls(Decimal(found["plain"]), len(found["part"] or "") if digits is None else digits)

    def is_rounded(self, value: Decimal) -> bool:
        """Whether a value, rounded half up to the printed digits, is this number."""
        return value.quantize(self._unit(), ROUND_HALF_UP) == self.value

    def is_truncated(self, value: Decimal) -> bool:
        """Whether the printed digits are a value's own, and the rest is left out."""
        return value.quantize(self._unit(), ROUND_DOWN) == self.value

    def text(self, value: Decimal) -> str:
        """A value as this number is written, with one digit more."""
        if self.power:
            return f"10^{value.log10():.0f}"
        return f"{value.quantize(self._unit(1), ROUND_HALF_UP):f}"

    def _unit(self, more: int = 0) -> Decimal:
        return Decimal(1).scaleb(-self.digits - more)


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Args:
        name: its heading.
        unit: of the printed numbers.
        kind: "cost", "accuracy", "speed", "memory" or "statement".
        measure: of a cost: "params" or "macs".
        scale: of a cost: what the unit stands for.
        relative_to: of a cost: what it is divided by.
    """

    name: str
    unit: str
    kind: str
    measure: str = ""
    scale: int = 1
    relative_to: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Row:
    """A row.

    Args:
        name: as printed.
        printed: a text for each column; "" and "-" are no numbers.
        number: of the row in its table, from 1.
        where: what the print leaves out.
        family: the heading above a group of rows.
        ours: what is counted.
        counting: by which rule, where it is not ``exact``.
        inconsistent: column -> why the printed number cannot be right.
        unpublished: column -> what is not known of what was counted.
        caveat: what the rule leaves out or counts too much.
        unbuilt: why there is nothing to count.
        kind: of its cell, where it is not the column's.
        digits: the last printed digit, where the text does not show it.
    """

    name: str
    printed: tuple[str, ...]
    number: int
    where: str = ""
    family: str = ""
    ours: Mapping[str, object] | None = None
    counting: str = "exact"
    inconsistent: Mapping[str, str] = field(default_factory=dict)
    unpublished: Mapping[str, str] = field(default_factory=dict)
    caveat: str = ""
    unbuilt: str = ""
    kind: str = ""
    digits: int | None = None

    @property
    def label(self) -> str:
        """The name and what the print leaves out."""
        return f"{self.name}, {self.where}" if self.where else self.name


FOUND = ("supported", "not supported", "undecided", "not testable here")
"""What can be found of a claim: with "undecided" and "not testable here" ``because`` says what is missing."""


@dataclass(frozen=True)
class Claim:
    """What a table's accuracies are printed to show.

    Args:
        text: the claim in a sentence.
        found: one of ``FOUND``, of the experiments in docs/reports/evidence.md.
        because: what was seen, or what is missing.
        section: of that page, as its address has it; "" where nothing was tried.
    """

    text: str
    found: str
    because: str
    section: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: that it is asked for by.
        title: what it shows.
        source: who printed it.
        url: the paper.
        paper: its title, arXiv number and, where the print has one, the number of the table.
        order: of the tables on the page.
        columns: of numbers.
        rows: in their order.
        note: what is needed to read it.
        claims: about accuracy.
    """

    name: str
    title: str
    source: str
    url: str
    paper: str
    order: int
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""
    claims: tuple[Claim, ...] = ()


def names() -> tuple[str, ...]:
    """The tables, sorted."""
    files = resources.files("foveate.studies.reproduction").joinpath(_FOLDER).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def read_table(name: str) -> Table:
    """A table by name.

    Raises:
        FoveateError: there is none of this name.
    """
    if name not in names():
        raise FoveateError(f"no table is called {name!r}; {near(name, names())}")
    text = resources.files("foveate.studies.reproduction").joinpath(_FOLDER, f"{name}.toml").read_text("utf-8")
    data = tomllib.loads(text)
    columns = tuple(Column(**column) for column in data.pop("columns"))
    numbered = enumerate(data.pop("rows"), 1)
    rows = tuple(Row(**{**row, "printed": tuple(row["printed"]), "number": number}) for number, row in numbered)
    claims = tuple(Claim(**claim) for claim in data.pop("claims", []))
    return Table(name, columns=columns, rows=rows, claims=claims, **data)


COLUMNS = {"speed": "speed_ratio", "memory": "memory_ratio"}
"""Kind of a cell -> the CSV's column with its ratio to ResNet-50."""


@dataclass(frozen=True)
class Measured:
    """One network.

    Args:
        speed_ratio: images/s relative to ResNet-50; None where it was not measured.
        memory_ratio: peak memory relative to ResNet-50.
        reason: why it was not measured.
    """

    speed_ratio: float | None
    memory_ratio: float | None
    reason: str = ""

    def ratio(self, kind: str) -> float | None:
        """The ratio of a kind of cell."""
        found: float | None = getattr(self, COLUMNS[kind])
        return found


def read_measured(file: str | os.PathLike[str]) -> dict[str, Measured]:
    """The rows by name of the network.

    Raises:
        FoveateError: the file cannot be read, or is not such a table.
    """
    try:
        with Path(file).open(encoding="utf-8", newline="") as opened:
            return {row["network"]: _measured(row) for row in csv.DictReader(opened)}
    except OSError as error:
        raise FoveateError(f"cannot read {str(file)!r}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        wanted = ", ".join(("network", *COLUMNS.values(), "reason"))
        raise FoveateError(
            f"{str(file)!r} is not a table of benchmarks/tradeoff.py, which has columns {wanted}"
        ) from error


def _measured(row: dict[str, str]) -> Measured:
    speed, memory = (float(row[column]) if row[column] else None for column in COLUMNS.values())
    return Measured(speed, memory, row["reason"])


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Spearman's rank correlation: the correlation of ranks, equal values sharing theirs."""
    return statistics.correlation(_ranks(ours), _ranks(theirs))


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]
