"""One network in several formats and precisions: a row for each, also for what failed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from foveate.errors import FoveateError
from foveate.exporters.export import export
from foveate.exporters.format import find_format
from foveate.exporters.options import PRECISIONS
from foveate.exporters.result import Exported
from foveate.exporters.sample_images import SampleSource
from foveate.exporters.verify import failed
from foveate.html import html_table
from foveate.io import JsonObject, write_csv
from foveate.surgery.saving.checkpoint import load

if TYPE_CHECKING:
    from foveate.data.detection import DetectionData
    from foveate.data.segmentation import SegmentationData
    from foveate.data.split import ImageData

__all__ = ["ExportRow", "ExportTable", "export_all"]


@dataclass(frozen=True)
class ExportRow:
    """One file, or why there is none.

    Args:
        format: asked for.
        precision: asked for.
        status: "ok"; "run, nothing to compare", where neither a detector nor its file found an object; "converted, not
            run"; or "failed".
        reason: why it failed, in one line; else empty.
        exported: the file; None where it failed and was not kept.
    """

    format: str
    precision: str
    status: str
    reason: str = ""
    exported: Exported | None = None

    def to_dict(self) -> JsonObject:
        """The row's numbers by column."""
        made = self.exported
        row: JsonObject = {"format": self.format, "precision": self.precision, "status": self.status}
        for name in ("megabytes", "difference", "agreement", "agreement_without", "top1", "network_top1"):
            row[name] = getattr(made, name, None)
        row |= {name: getattr(made, name, None) for name in ("miou", "network_miou", "map", "network_map")}
        defined = [each.correlation for each in made.contributions if each.correlation is not None] if made else []
        row["lowest_correlation"] = min(defined, default=None)
        row |= {name: getattr(made, name, None) for name in ("milliseconds", "network_milliseconds")}
        return {**row, "path": str(made.path) if made else "", "reason": self.reason}


@dataclass(frozen=True)
class ExportTable:
    """Rows in the order in which they were asked for.

    Args:
        rows: one for each file that was asked for.
    """

    rows: tuple[ExportRow, ...]

    @property
    def failed(self) -> tuple[ExportRow, ...]:
        """What was not written."""
        return tuple(row for row in self.rows if row.status == "failed")

    def _repr_html_(self) -> str:
        rows = [row.to_dict() for row in self.rows]
        shown = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)] if rows else []
        cells = [[f"{row[name]:.4g}" if isinstance(row[name], float) else row[name] for name in shown] for row in rows]
        return html_table([name.replace("_", " ") for name in shown], cells)

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """A line for each row.

        Raises:
            FoveateError: the file cannot be written.
        """
        return write_csv(Path(path), [row.to_dict() for row in self.rows])


def export_all(
    model: nn.Module | str | os.PathLike[str],
    formats: Sequence[str] | str,
    output: str | os.PathLike[str],
    *,
    precisions: Sequence[str] | str = ("fp32",),
    data: str | os.PathLike[str] | ImageData | SegmentationData | DetectionData | None = None,
    started: Callable[[str, str], object] = lambda _format, _precision: None,
    options: JsonObject | None = None,
) -> ExportTable:
    """Export a network in each format and precision; what fails is a row, and the others go on.

    Args:
        model: a network as ``export`` takes it, or a folder that ``fit`` or ``save`` wrote.
        formats: their names.
        output: a folder.
        precisions: in each format.
        data: images to check and to calibrate with; opened and decoded once.
        started: called with format and precision before each.
        options: more arguments of ``export``, the same for all.

    Returns:
        A row for each file that was asked for, also for those that failed.

    Raises:
        FoveateError: a format or precision does not exist, the model or the data cannot be opened, or nothing is asked.
    """
    formats = [formats] if isinstance(formats, str) else formats
    precisions = [precisions] if isinstance(precisions, str) else precisions
    if not formats or not precisions:
        raise FoveateError("export needs a format and a precision at least, such as onnx and fp32")
    for name in formats:
        find_format(name)
    for precision in precisions:
        if precision not in PRECISIONS:
            raise FoveateError(f"precision {precision!r} is not known; there are: {', '.join(PRECISIONS)}")
    network = model if isinstance(model, nn.Module) else load(model)
    source = SampleSource(data) if data is not None else None
    rows = []
    for name in dict.fromkeys(formats):
        for precision in dict.fromkeys(precisions):
            started(name, precision)
            try:
                made = export(network, name, output, precision=precision, data=source, **(options or {}))
            except FoveateError as error:
                rows.append(ExportRow(name, precision, "failed", str(error)))
                continue
            wrong = failed(made.checks)
            status = "failed" if wrong else _status(made)
            reason = "; ".join(f"{check.name}: {check.value}" for check in wrong)
            rows.append(ExportRow(name, precision, status, reason, made))
    return ExportTable(tuple(rows))


def _status(made: Exported) -> str:
    if made.compared or not made.checks:
        return "ok"
    return "run, nothing to compare" if made.ran else "converted, not run"
