"""Speeds and memory that ``benchmarks/tradeoff.py`` measured, and how their order agrees with the papers'."""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.errors import FoveateError

__all__ = ["COLUMNS", "Measured", "read_measured", "spearman"]

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
