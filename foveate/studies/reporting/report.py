"""A comparison as one page: what was found, the tables, the classes, the audit, and what each network looks at."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from foveate.errors import FoveateError
from foveate.io import Row, make_folder
from foveate.studies.comparison.config import RUNS
from foveate.studies.comparison.results import Comparison
from foveate.studies.comparison.run import read_result
from foveate.studies.deployment.plan_exports import read_plan_exports
from foveate.studies.reporting.html import write_report
from foveate.studies.reporting.notes import notes
from foveate.studies.reporting.parts import parts_of
from foveate.training.tasks.choose import OpenedData

__all__ = ["report"]

_PLANS = 6  # whose classes and images are shown


def report(
    comparison: Comparison,
    data: OpenedData,
    *,
    folder: str | Path | None = None,
    images: int = 4,
    audited: int = 500,
    commands: Sequence[str] = (),
) -> Path:
    """Write ``report.html``, one self-contained page, and ``overlays/`` with its pictures.

    What ``export_plans`` wrote of these plans into the folder is shown, too.

    Args:
        comparison: from ``compare``.
        data: what it was made on; pictures are taken from its validation part.
        folder: where to write; without it the comparison's own.
        images: how many images are looked at, spread over the classes; and at most so many of those that a plan gains
            or loses. Of segmentation and detection: how many of the worst images are shown, with their
            masks or boxes.
        audited: at most so many validation images for the audit of each plan's network; 0: no audit.
        commands: the lines that made the comparison, to be shown.

    Returns:
        The page.

    Raises:
        FoveateError: it is not a comparison, neither ``folder`` nor the comparison has a folder, or it cannot be made.
    """
    given: object = comparison
    if not isinstance(given, Comparison):
        what = type(given).__name__
        raise FoveateError(f"report takes a comparison, from compare or read_comparison, not {what}")
    place = Path(folder) if folder is not None else comparison.folder
    if place is None:
        raise FoveateError("report: the comparison has no folder; give report(..., folder=...)")
    overlays = make_folder(place / "overlays")
    shown = list(comparison.setup.runs)[:_PLANS]
    parts = parts_of(comparison, data, shown, images, audited, overlays)
    exported = read_plan_exports(place, comparison)
    return write_report(
        place,
        title=f"{data.name}: attention against none",
        measure=comparison.measure,
        rows=_rows(comparison),
        seeds=comparison.seeds,
        facts=_facts(comparison),
        histories=_histories(comparison),
        classes=parts.classes,
        factors=comparison.factor_rows(),
        galleries=parts.galleries,
        audits=parts.audits,
        exports=exported.rows if exported else (),
        notes=[*notes(comparison), *parts.notes, *_without_network(comparison)],
        commands=list(commands),
    )


def _without_network(comparison: Comparison) -> list[str]:
    """That a part of the page is missing, where a plan's result is there and its weights are not."""
    absent = [label for label in comparison.setup.runs if label not in comparison.models]
    if not absent:
        return []
    return [f"No pictures and no audit of {', '.join(absent)}: the trained network of the first seed is not here."]


def _rows(comparison: Comparison) -> list[Row]:
    """What the page shows of each plan."""
    left_out = {"loss", "top5", "seconds"} | (set() if comparison.setup.tuning else {"learning_rate"})
    speeds: dict[str, list[float]] = {}
    for run in comparison.timing:
        speeds.setdefault(run["plan"], []).append(run["images_per_second"])
    return [
        {key: value for key, value in row.items() if key not in left_out}
        | {"images_per_second": median(speeds[row["plan"]]) if row["plan"] in speeds else None}
        for row in comparison.as_dicts()
    ]


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    setup = comparison.setup
    return [
        ("Network", setup.network),
        ("Data", f"{setup.data}: {setup.train_images:,} training and {setup.val_images:,} validation images"),
        ("Seeds", ", ".join(map(str, setup.seeds))),
        ("Date", datetime.now(UTC).date().isoformat()),
    ]


def _histories(comparison: Comparison) -> dict[str, list[list[Row]]]:
    """The epochs of each run whose folder is there."""
    if comparison.folder is None:
        return {}
    folder = comparison.folder / RUNS
    return {label: [_epochs(folder / name) for name in names] for label, names in comparison.setup.runs.items()}


def _epochs(folder: Path) -> list[Row]:
    result = read_result(folder)
    if result is None or result.folder is None or not (result.folder / "summary.csv").is_file():
        return []
    with (result.folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        return [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]
