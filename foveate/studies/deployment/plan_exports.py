"""What each plan of a comparison costs and keeps as a file of another runtime."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from foveate.accounting.latency import latency
from foveate.data.split import ImageData
from foveate.errors import FoveateError
from foveate.exporters.export import export
from foveate.exporters.format import find_format
from foveate.exporters.opened import open_exported
from foveate.exporters.options import PRECISIONS
from foveate.exporters.result import Exported
from foveate.exporters.sample_images import SampleSource
from foveate.html import html_table
from foveate.io import Row, make_folder, write_csv
from foveate.studies.comparison.config import BASELINE
from foveate.studies.comparison.measure import TOP1
from foveate.studies.comparison.results import Comparison
from foveate.studies.reporting.terminal_table import terminal_table

__all__ = ["FILE", "PlanExports", "check_targets", "export_plans", "read_plan_exports", "target_of"]

FILE = "exports.csv"
_NUMBERS = (
    *("megabytes", "top1", "network_top1", "agreement", "milliseconds", "ratio", "ratio_low", "ratio_high"),
    "lowest_correlation",
)
_ROUNDS, _SECONDS = 30, 5.0


@dataclass(frozen=True)
class PlanExports:
    """A row for each plan and target.

    Args:
        rows: "plan", "run" (the name of the run whose network it is), "format", "precision", "status" ("ok",
            "converted, not run" or "failed"), "reason"; "megabytes", "top1" and "network_top1" (percent, of the
            images that were looked at), "agreement" (0 to 1), "milliseconds" of one image in the file's
            runtime, "ratio" with "ratio_low" and "ratio_high" (95%): its time relative to that of the file without
            attention, in turns; "lowest_correlation" of what the attention adds. What was not measured is None.
    """

    rows: tuple[Row, ...]

    def table(self, console: Console | None = None) -> Table:
        """The table for a terminal; a narrow one has fewer columns of numbers.

        Args:
            console: where it will be printed; without it a terminal of 80 columns.
        """
        return terminal_table(
            [str(row["plan"]) for row in self.rows],
            self._columns(),
            title="As files",
            leave_out=("agree %", "ratio [95%]", "MB", "top-1 %"),
            console=console,
        )

    def _repr_html_(self) -> str:
        columns = {"plan": [row["plan"] for row in self.rows], **self._columns()}
        columns["reason"] = [row["reason"] for row in self.rows]
        return html_table(list(columns), zip(*columns.values(), strict=True))

    def _columns(self) -> dict[str, list[str]]:
        cells = [
            (
                f"{row['format']} {row['precision']}",
                _text(row["megabytes"], 2),
                _text(row["top1"], 1),
                _text(None if row["agreement"] is None else 100 * row["agreement"], 1),
                "failed" if row["status"] == "failed" else _text(row["milliseconds"], 2),
                ratio_text(row),
            )
            for row in self.rows
        ]
        headings = ("file", "MB", "top-1 %", "agree %", "ms", "ratio [95%]")
        return {heading: [row[n] for row in cells] for n, heading in enumerate(headings)}


def export_plans(
    comparison: Comparison,
    data: ImageData,
    targets: Sequence[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    images: int = 200,
) -> PlanExports:
    """Export the first seed's network of every plan, and time each file in turns with the one without attention.

    Args:
        comparison: from ``compare``, with its networks.
        data: what it was made on: validation images check the files, training images calibrate int8.
        targets: formats with or without a precision, such as "onnx:int8" or "openvino".
        folder: for the files, in ``exports/``, and for exports.csv; without it the comparison's own.
        images: at most so many validation images.

    Returns:
        What was written of each plan, and how fast it is beside the network without.

    Raises:
        FoveateError: a target does not exist, there is neither a folder nor a network, or the folder cannot be made.
    """
    if comparison.measure is not TOP1:
        raise FoveateError(
            f"export_plans is for classification: of a {comparison.measure.task} network export "
            "comparison.models[PLAN] by fv.export"
        )
    asked = [target_of(target) for target in targets]
    place = Path(folder) if folder is not None else comparison.folder
    if place is None or not asked or not len(comparison.models):
        raise FoveateError("export_plans needs the networks of a comparison, a folder for the files, and a target")
    make_folder(place, later=True)
    rows: list[Row] = []
    source = SampleSource(data)
    for name, precision in asked:
        reference: Path | None = None
        for number, label in enumerate([BASELINE, *(row.label for row in comparison.rows if row.label != BASELINE)]):
            path = place / "exports" / f"{number}_{precision}{find_format(name).suffix}"
            row: dict[str, Any] = dict.fromkeys(_NUMBERS)
            row |= {"plan": label, "run": comparison.setup.runs[label][0]}
            row |= {"format": name, "precision": precision, "status": "ok", "reason": ""}
            try:
                _remove(path)  # of another plan, where this one fails
                made = export(
                    comparison.models[label],
                    *(name, path),
                    precision=precision,
                    data=source,
                    images=images,
                    size=comparison.recipe.image_size,
                    overwrite=True,
                )
                row |= _numbers(made)
                if made.ran:
                    reference = path if label == BASELINE else reference
                    row |= _ratio(path, reference if label != BASELINE else None)
            except FoveateError as error:
                row |= {"status": "failed", "reason": str(error)}
            rows.append(row)
    heads = ("plan", "run", "format", "precision", "status", "reason")
    write_csv(place / FILE, rows, (*heads, *_NUMBERS))
    return PlanExports(tuple(rows))


def check_targets(targets: Sequence[str]) -> None:
    """Make sure that targets exist and that what they need is installed.

    Args:
        targets: formats, each with a precision or without, such as "onnx:int8".

    Raises:
        FoveateError: one does not, or it is not.
    """
    for target in targets:
        find_format(target_of(target)[0]).check_installed()


def target_of(text: str) -> tuple[str, str]:
    """Format and precision of a target, such as "onnx:int8"; without a precision it is fp32.

    Raises:
        FoveateError: one of them does not exist.
    """
    name, _, precision = text.partition(":")
    precision = precision or "fp32"
    form = find_format(name)
    if precision not in form.precisions:
        known = [each for each in PRECISIONS if each in form.precisions]
        raise FoveateError(f"{text!r}: {name} is written in {', '.join(known)}, not in {precision!r}")
    return name, precision


def _remove(path: Path) -> None:
    """Remove what an earlier export wrote.

    Raises:
        FoveateError: it cannot be removed.
    """
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise FoveateError(f"cannot remove {path}, of an earlier export: {error.strerror or error}") from error


def read_plan_exports(folder: Path, comparison: Comparison) -> PlanExports | None:
    """What ``export_plans`` wrote of a comparison into a folder; None where it wrote nothing.

    Rows of networks that are not the comparison's, which another one left in the same folder, are left out.
    """
    try:
        with (folder / FILE).open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    except OSError:
        return None
    rows: list[Row] = []
    runs = comparison.setup.runs
    labels = {names[0]: label for label, names in runs.items()}
    for row in found:
        if row.get("run") not in labels:
            continue
        same = runs.get(row["plan"], ("",))[0] == row["run"]  # two plans may have one run, and a label another's run
        label = row["plan"] if same else labels[row["run"]]
        numbers = {key: float(row[key]) if row.get(key) else None for key in _NUMBERS}
        rows.append({**row, "plan": label, **numbers})
    return PlanExports(tuple(rows)) if rows else None


def ratio_text(row: Row) -> str:
    """The ratio with its interval, or nothing."""
    if row["ratio"] is None:
        return ""
    return f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"


def _numbers(made: Exported) -> Row:
    known = [each.correlation for each in made.contributions if each.correlation is not None]
    return {
        "status": "ok" if made.ran else "converted, not run",
        "megabytes": made.megabytes,
        "top1": None if made.top1 is None else 100 * made.top1,
        "network_top1": None if made.network_top1 is None else 100 * made.network_top1,
        "agreement": made.agreement,
        "milliseconds": made.milliseconds,
        "lowest_correlation": min(known, default=None),
    }


def _ratio(path: Path, reference: Path | None) -> Row:
    if reference is None:
        return {}
    found = latency(open_exported(path), reference=open_exported(reference), rounds=_ROUNDS, seconds=_SECONDS)
    ratio = found.timings[0].ratio
    return {} if ratio is None else {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
