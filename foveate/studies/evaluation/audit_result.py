"""What an audit found, and the rule that turns numbers into a verdict."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.studies.comparison.statistics import Difference
from foveate.studies.evaluation.attention_metrics import CONSTANT, Survival

__all__ = ["LEAST", "MARGIN", "NIL", "Audit", "Effect", "ModuleAudit", "verdict_of"]

NIL = 1e-3  # a contribution below a thousandth of the input is none
MARGIN = 1.0  # percentage points: an interval within +-1 point is no effect
LEAST = 300  # images: what is seen in none of 300 has a rate below 1% (95%; the rule of three)
_P = 0.05


@dataclass(frozen=True)
class Effect:
    """What becomes of the predictions when a module is changed.

    Args:
        difference: in accuracy, changed minus unchanged, in percentage points with a 95% interval over the images.
        p: of McNemar's exact test, by Holm's correction for all the modules of the audit.
        changed: the share of the images whose predicted class is another one.
        images: how many were looked at.
    """

    difference: Difference
    p: float
    changed: float
    images: int

    @property
    def better(self) -> bool:
        """Whether accuracy rises beyond the interval."""
        return self.difference.low > 0 and self.p < _P

    @property
    def worse(self) -> bool:
        """Whether accuracy falls beyond the interval."""
        return self.difference.high < 0 and self.p < _P

    @property
    def none(self) -> bool:
        """Whether no prediction changes, of enough images."""
        return self.changed == 0 and self.images >= LEAST

    @property
    def nil(self) -> bool:
        """Whether the whole interval is within ``MARGIN`` points of 0, of enough images."""
        return self.images >= LEAST and self.difference.low > -MARGIN and self.difference.high < MARGIN


@dataclass(frozen=True)
class ModuleAudit:
    """One inserted module.

    Args:
        site: where it stands; "pool" or "head".
        spec: the mechanism, as in the plan.
        verb: "after", "replacing", "as pool" or "as head".
        gate: of a module that started as the identity; else None.
        maps: how many maps of its own it has for an image; 0 where it does not tell.
        entropy: of its maps, relative to the uniform map's: 1 is uniform, 0 one place alone. None without maps.
        area: exp(entropy) / N, the part of the places that a map of equal weights with this entropy covers.
        varies: how much a map's values differ between images: standard deviation in units of their mean.
        constant: the share of the maps that vary by less than 1%.
        contribution: ||output - input|| / ||input||, the mean over images; of a pool against the mean.
        off: with its input passed on in its place; of a pool with the mean in its place. None for a head.
        shuffled: with another image's map; None where that makes no sense.
        shuffles: "map"; "contribution", output - input of another image, where the output is no multiple of x.
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
    varies: float | None
    constant: float | None
    contribution: float | None
    off: Effect | None
    shuffled: Effect | None
    shuffles: str | None
    bf16: Survival | None
    fp16: Survival | None
    int8: Survival | None
    time: float
    verdict: str
    reason: str


def verdict_of(
    off: Effect | None,
    shuffled: Effect | None,
    contribution: float | None,
    varies: float | None,
    constant: float | None,
) -> tuple[str, str]:
    """The verdict and its reason. The first rule that holds decides.

    1. harmful: without the module accuracy is better, beyond the 95% interval and with p < 0.05.
    2. inert: its contribution is below a thousandth of its input, or no prediction of at least 300 changes without it.
    3. static: each of its maps varies by less than 1% between images.
    4. works: without the module accuracy is worse, beyond the 95% interval and with p < 0.05.
    5. inert: the interval of the difference lies within one percentage point of 0, for at least 300 images.
    6. unclear: anything else; more images may tell.
    """
    told = f"without it {off.difference} points" if off else ""
    if off and off.better:
        return "harmful", f"{told}: the network is better without it"
    if contribution is not None and contribution < NIL:
        return "inert", f"it changes its input by {100 * contribution:.2g}%"
    if off and off.none:
        return "inert", f"no prediction of {off.images} changes without it"
    if constant == 1 and varies is not None:
        same = f"its map is the same for every image (varies {100 * varies:.2g}%, less than {100 * CONSTANT:.0f}%)"
        return "static", f"{same}; {told}" if told else same
    if off is None:
        return "unclear", "a head is the classifier: it cannot be switched off"
    if off.worse:
        if shuffled and shuffled.worse:
            return "works", f"{told}, with another image's map {shuffled.difference}"
        if shuffled and shuffled.nil:
            return "works", f"{told}; but another image's map does as well: little depends on the image"
        return "works", told
    if off.nil:
        return "inert", f"{told}: no effect beyond {MARGIN:g} point"
    return "unclear", f"{told}: too few images to tell"


@dataclass(frozen=True, eq=False)
class Audit:
    """What ``audit`` found.

    Args:
        rows: one for each inserted module, in the plan's order.
        data: name of the data set.
        images: how many images were looked at.
        accuracy: of the model as it is, in percent.
        seconds: of one forward pass over a batch, the median.
        batch: images in that batch.
    """

    rows: tuple[ModuleAudit, ...]
    data: str
    images: int
    accuracy: float
    seconds: float
    batch: int

    def as_dicts(self) -> list[dict[str, Any]]:
        """A flat dict of plain values for each module, for JSON and CSV."""
        return [_flat(row) for row in self.rows]

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a line for each module.

        Raises:
            FoveateError: the file cannot be written.
        """
        try:
            with Path(path).open("w", newline="", encoding="utf-8") as file:
                self.to_csv(file)
        except OSError as error:
            raise FoveateError(f"cannot write {str(path)!r}: {error.strerror}; choose another place") from error
        return Path(path)

    def to_csv(self, file: Any) -> None:
        """Write the lines to an open text file."""
        rows = self.as_dicts()
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)

    def table(self) -> str:
        """The table as plain text, at most 100 columns wide."""
        head = (
            f"{self.data}: {self.images} images, accuracy {self.accuracy:.1f}%; points without the module, "
            "with another image's map"
        )
        columns: list[tuple[str, int, Callable[[ModuleAudit], str]]] = [
            ("module", -20, lambda row: row.site if len(row.site) <= 20 else f"…{row.site[-19:]}"),
            ("verdict", -8, lambda row: row.verdict),
            ("without [95%]", 19, lambda row: str(row.off.difference) if row.off else "-"),
            ("shuf.", 5, lambda row: f"{row.shuffled.difference.mean:+.1f}" if row.shuffled else "-"),
            ("size", 7, lambda row: _number(row.contribution, ".2g")),
            ("entropy", 7, lambda row: _number(row.entropy, ".3f")),
            ("varies", 6, lambda row: _number(row.varies, ".2f")),
            ("bf16 fp16 int8", 14, lambda row: " ".join(_survived(s) for s in (row.bf16, row.fp16, row.int8))),
            ("time", 5, lambda row: f"{100 * row.time:.2g}%"),
        ]
        lines = [head[:100], " ".join(_padded(name, width) for name, width, _ in columns).rstrip()]
        lines += [" ".join(_padded(cell(row), width) for _, width, cell in columns).rstrip() for row in self.rows]
        return "\n".join(lines)

    def __str__(self) -> str:
        words = [f"{row.site} ({row.spec} {row.verb}): {row.verdict}: {row.reason}" for row in self.rows]
        return "\n".join([self.table(), "", *words])

    def print(self) -> None:
        """Print the table, and a verdict in words for each module."""
        print(self)


def _padded(text: str, width: int) -> str:
    return f"{text:<{-width}}" if width < 0 else f"{text:>{width}}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _survived(survival: Survival | None) -> str:
    return "   -" if survival is None else f"{survival.correlation:4.2f}"


def _flat(row: ModuleAudit) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in dataclasses.fields(row):
        value = getattr(row, part.name)
        if part.name in ("off", "shuffled"):
            of = value.difference if value else None
            for key in ("mean", "low", "high"):
                found[f"{part.name}_{key}"] = getattr(of, key) if of else None
            found[f"{part.name}_p"] = value.p if value else None
            found[f"{part.name}_changed"] = value.changed if value else None
        elif part.name in ("bf16", "fp16", "int8"):
            found[f"{part.name}_correlation"] = value.correlation if value else None
            found[f"{part.name}_changed"] = value.changed if value else None
        else:
            found[part.name] = value
    return found
