"""What an audit found, as tables and plain values."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.html import html_lines, html_table
from foveate.io import JsonObject, csv_text, write_csv
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.evaluation.low_precision import PRECISIONS, Survival
from foveate.studies.evaluation.verdict import Measures, points

__all__ = ["Audit", "ModuleAudit"]


@dataclass(frozen=True, kw_only=True)
class ModuleAudit(Measures):
    """One inserted module: what was measured of it, its verdict, and why.

    Args:
        site: where it stands; "pool" or "head".
        spec: the attention module, as in the plan.
        verb: "after", "replacing", "as pool" or "as head".
        gate: of a module that started as the identity; else None.
        maps: how many maps of its own it has for an image; 0 where it does not tell.
        entropy: of its maps, relative to the uniform map's: 1 is uniform, 0 one position alone. None without maps.
        area: exp(entropy) / N, the part of the positions that a map of equal weights with this entropy covers.
        bf16: what bfloat16 leaves of the contribution; None where it was not tried.
        fp16: the same of float16.
        int8: the same of 8 bits.
        time: the module's share of a forward pass.
        verdict: "works", "static", "inert", "harmful" or "unclear".
        reason: why, in words.
    """

    site: str
    spec: str
    verb: str
    gate: float | None
    maps: int
    entropy: float | None
    area: float | None
    bf16: Survival | None
    fp16: Survival | None
    int8: Survival | None
    time: float
    verdict: str
    reason: str


Column = tuple[str, int, Callable[[ModuleAudit], str]]  # heading, width (below 0: to the left), a module's cell


@dataclass(frozen=True, eq=False)
class Audit:
    """What ``audit`` found.

    Args:
        rows: one for each inserted module, in the plan's order.
        data: name of the data set.
        images: how many images were looked at.
        accuracy: of the model as it is, in percent; of segmentation the mIoU, of detection the mAP.
        seconds: of one forward pass over a batch, the median.
        batch: images in that batch.
        measure: what the network is judged by.
    """

    rows: tuple[ModuleAudit, ...]
    data: str
    images: int
    accuracy: float
    seconds: float
    batch: int
    measure: Measure = TOP1

    def as_dicts(self) -> list[JsonObject]:
        """A flat dict of plain values for each module, for JSON and CSV."""
        return [_flat(row) for row in self.rows]

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a line for each module.

        Raises:
            FoveateError: the file cannot be written.
        """
        return write_csv(Path(path), self.as_dicts(), digits=6)

    def to_csv(self, file: Any) -> None:
        """Write the lines to an open text file."""
        file.write(csv_text(self.as_dicts(), digits=6))

    def table(self) -> str:
        """The tables as plain text, at most 100 columns wide."""
        what = f": {self.images} images, {self.measure.short} {self.accuracy:.1f}%; points without the module, "
        what += "with another image's map"
        name = self.data if len(self.data) + len(what) <= 100 else f"{self.data[: 99 - len(what)]}…"
        columns: list[Column] = [
            ("module", -25, _site),
            ("verdict", -8, lambda row: row.verdict),
            ("without [95%]", 23, lambda row: points(row.off.difference) if row.off else "-"),
            ("shuf.", 5, lambda row: f"{row.shuffled.difference.mean:+.1f}" if row.shuffled else "-"),
            ("size", 7, lambda row: _number(row.contribution, ".2g")),
            ("entropy", 7, lambda row: _number(row.entropy, ".3f")),
            ("varies", 6, lambda row: _number(row.varies, ".2f")),
            ("time", 6, lambda row: f"{100 * row.time:.2g}%"),
        ]
        tables = [name + what, *_table(columns, self.rows)]
        measured = [row for row in self.rows if any(getattr(row, name) for name in PRECISIONS)]
        if measured:
            columns = [("module", -25, _site)]
            columns += [(name, 22, functools.partial(_survived, name)) for name in PRECISIONS]
            words = "what low precision leaves of output - input: correlation, norm ratio, relative error"
            tables += ["", words, *_table(columns, measured)]
        return "\n".join(tables)

    def __str__(self) -> str:
        words = [f"{row.site} ({row.spec} {row.verb}): {row.verdict}: {row.reason}" for row in self.rows]
        return "\n".join([self.table(), "", *words])

    def _repr_html_(self) -> str:
        rows = [
            (
                row.site,
                f"{row.spec} {row.verb}",
                row.verdict,
                row.reason,
                points(row.off.difference) if row.off else None,
                f"{row.shuffled.difference.mean:+.1f}" if row.shuffled else None,
                _number(row.contribution, ".2g"),
                _number(row.entropy, ".3f"),
                _number(row.varies, ".2f"),
                f"{100 * row.time:.2g}%",
            )
            for row in self.rows
        ]
        headings = ("module", "attention", "verdict", "reason", "without it, points [95%]", "another image's map")
        table = html_table((*headings, "contribution", "entropy", "varies", "time"), rows, right=range(4, 10))
        return html_lines(f"{self.data}: {self.images} images, {self.measure.short} {self.accuracy:.1f}%") + table

    def print(self) -> None:
        """Print the table, and a verdict in words for each module."""
        print(self)


def _table(columns: Sequence[Column], rows: Sequence[ModuleAudit]) -> list[str]:
    lines = [" ".join(_padded(name, width) for name, width, _ in columns)]
    lines += [" ".join(_padded(cell(row), width) for _, width, cell in columns) for row in rows]
    return [line.rstrip() for line in lines]


def _padded(text: str, width: int) -> str:
    return f"{text:<{-width}}" if width < 0 else f"{text:>{width}}"


def _site(row: ModuleAudit) -> str:
    return row.site if len(row.site) <= 25 else f"…{row.site[-24:]}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _survived(name: str, row: ModuleAudit) -> str:
    survival: Survival | None = getattr(row, name)
    if survival is None:
        return "-"
    numbers = (survival.correlation, survival.norm_ratio, survival.relative_error)
    words = " ".join(
        "   -" if x is None else ">999" if x > 999 else f"{x:4.2f}" if x < 10 else f"{x:4.0f}" for x in numbers
    )
    return f"{words} overfl." if survival.overflow else words


def _flat(row: ModuleAudit) -> dict[str, object]:
    found: dict[str, object] = {}
    # The module's name first, then what was measured, in the order of the class.
    for part in sorted(dataclasses.fields(row), key=lambda part: part.name not in ("site", "spec", "verb", "verdict")):
        value = getattr(row, part.name)
        if part.name in ("off", "shuffled"):
            of = value.difference if value else None
            for key in ("mean", "low", "high"):
                found[f"{part.name}_{key}"] = getattr(of, key) if of else None
            found[f"{part.name}_p"] = value.p if value else None
            found[f"{part.name}_changed"] = value.changed if value else None
        elif part.name in ("bf16", "fp16", "int8"):
            for key in (field.name for field in dataclasses.fields(Survival)):
                found[f"{part.name}_{key}"] = getattr(value, key) if value else None
        else:
            found[part.name] = value
    return found
