"""What predictions with several plans and seeds allow one to say of each plan, in numbers and in words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.errors import FoveateError, near
from foveate.html import html_table
from foveate.io import JsonObject, Row, write_csv
from foveate.studies.comparison.margin import check_margin, margin_test
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.comparison.plan_analysis import ALPHA, PlanAnalysis
from foveate.studies.comparison.power import plan_power, variance_of
from foveate.studies.comparison.statistics import Paired, difference_of, holm

__all__ = ["FEWEST_IMAGES", "Analysis", "analyse", "analyse_runs", "mean", "table_rows"]

FEWEST_IMAGES = 10  # ten differences on ten images have p = 0.002 by the sign test: from there on the t test is near it


@dataclass(frozen=True)
class Analysis:
    """What ``analyse`` found.

    Args:
        rows: one for each plan, in the given order.
        baseline: what they were compared with.
        accuracies: for the baseline and each plan the score in percent, one for each seed: top-1, or what is measured.
        seeds: how many.
        images: how many.
        margin: in points, or None.
        measure: what the plans are compared by.
    """

    rows: tuple[PlanAnalysis, ...]
    baseline: str
    accuracies: Mapping[str, tuple[float, ...]]
    seeds: int
    images: int
    margin: float | None
    measure: Measure = TOP1

    def __getitem__(self, label: str) -> PlanAnalysis:
        """One plan's row.

        Raises:
            FoveateError: there is no such plan.
        """
        for row in self.rows:
            if row.label == label:
                return row
        raise FoveateError(
            f"there is no plan {label!r} in the analysis; {near(label, [row.label for row in self.rows])}"
        )

    @property
    def verdicts(self) -> dict[str, str]:
        """By plan, in words and numbers, what the data allow one to say."""
        return {row.label: row.verdict for row in self.rows}

    def __str__(self) -> str:
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        base = mean(self.accuracies[self.baseline])
        lines = [f"{self.baseline}: {self.measure.name} {base:.1f}% on {self.images:,} images, {seeds}"]
        for row in self.rows:
            lines += [f"{row.label}: {row.verdict}", f"  {row.power_text}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(self.baseline, f"{mean(self.accuracies[self.baseline]):.1f}", "", "baseline", "")]
        rows += [
            (row.label, f"{mean(self.accuracies[row.label]):.1f}", str(row.difference), row.verdict, row.power_text)
            for row in self.rows
        ]
        return html_table(
            ("plan", self.measure.column, "difference [95%]", "verdict", "what would be seen"), rows, right=(1, 2)
        )

    def as_dicts(self) -> list[JsonObject]:
        """The rows as plain values, the baseline first, as a row without a difference."""
        parts = {self.baseline: PlanAnalysis.of_baseline()} | {row.label: row.as_dict() for row in self.rows}
        return [
            {"plan": label, self.measure.key: mean(self.accuracies[label]), **part} for label, part in parts.items()
        ]

    def to_csv(self, file: str | os.PathLike[str]) -> Path:
        """Write a line for each plan.

        Returns:
            The file written.

        Raises:
            FoveateError: the file cannot be written.
        """
        return write_csv(Path(file), table_rows(self.as_dicts()), digits=6)


def analyse(
    correct: Mapping[str, npt.ArrayLike],
    baseline: str = "none",
    margin: float | None = None,
    *,
    labels: npt.ArrayLike | None = None,
) -> Analysis:
    """Compare plans with a baseline by the predictions of networks, wherever they were trained.

    For each seed all plans, and the baseline, must have been tested on the same images in the same order, and with more
    than one seed they should share what a seed decides (the weights at the start, the order of the images).

    Args:
        correct: for each plan and the baseline (S, N) bool, whether each test image was right with each seed.
        baseline: its name.
        margin: in points of top-1: also say whether each plan is worse by more than that.
        labels: (N,) the class of each image, if it is known: on images of a single class there is no verdict.

    Returns:
        For each plan what can be said; str() of it is a report, ``to_csv`` writes a table.

    Raises:
        FoveateError: a name is unknown, an array is not (S, N) of true and false, or two differ in shape.
    """
    margin = check_margin(margin)
    right = {label: _checked(label, values) for label, values in correct.items()}
    if baseline not in right:
        raise FoveateError(f"baseline={baseline!r}: there are no predictions of that name; {near(baseline, right)}")
    if len(right) < 2:
        raise FoveateError(f"analyse needs predictions of at least one plan beside those of {baseline!r}")
    shapes = {label: tuple(values.shape) for label, values in right.items()}
    if len(set(shapes.values())) > 1:
        found_shapes = ", ".join(f"{label!r} {shape}" for label, shape in shapes.items())
        raise FoveateError(
            f"all predictions need one shape (seeds, images), of the same images in the same order: {found_shapes}"
        )
    classes = None if labels is None else np.unique(np.asarray(labels))
    if labels is not None and np.shape(labels) != shapes[baseline][1:]:
        raise FoveateError(f"labels: {np.shape(labels)} classes for the {shapes[baseline][1]} images of {baseline!r}")
    nothing = torch.zeros(shapes[baseline][1], dtype=torch.bool)
    # Every image is of class 0, and what is wrong has another one.
    predictions = {label: ~values for label, values in right.items()}
    return analyse_runs(TOP1, predictions, nothing, baseline, margin, None if classes is None else len(classes))


def analyse_runs(
    measure: Measure,
    predictions: Mapping[str, Tensor],
    labels: Tensor,
    baseline: str,
    margin: float | None = None,
    classes: int | None = None,
) -> Analysis:
    """Compare plans with a baseline by what their runs kept.

    Args:
        measure: what they are compared by.
        predictions: for each plan and the baseline (S, N, ...), what the measure's ``outputs`` gave for each seed.
        labels: what it gave beside them.
        baseline: its name.
        margin: in points, or None.
        classes: of the images, if it is known: of a single one there is no verdict.
    """
    base = predictions[baseline]
    others = {label: of for label, of in predictions.items() if label != baseline}
    found = measure.paired(torch.stack([measure.values(of, labels) for of in (base, *others.values())]))
    obstacle = _obstacle(found, classes)
    differences = [difference_of(found, plan) for plan in range(found.plans)]
    p_holm: Mapping[str, float] = {}
    if obstacle is None:
        p_holm = holm({label: difference.p for label, difference in zip(others, differences, strict=True)})
    accuracies = {label: measure.scores(of, labels) for label, of in predictions.items()}
    bootstrap = measure.bootstrap(predictions, baseline, labels)
    rows = [
        PlanAnalysis(
            label,
            difference,
            tuple(a - b for a, b in zip(accuracies[label], accuracies[baseline], strict=True)),
            bootstrap[label],
            measure.mcnemar(of, base, labels),
            p_holm.get(label),
            found.plans,
            found.images,
            None
            if obstacle
            else plan_power(difference.mean, variance_of(found, plan, ALPHA / found.plans), found.seeds, found.images),
            None if obstacle or margin is None else margin_test(found, plan, margin),
            obstacle,
        )
        for plan, (difference, (label, of)) in enumerate(zip(differences, others.items(), strict=True))
    ]
    return Analysis(tuple(rows), baseline, accuracies, found.seeds, found.images, margin, measure)


def _checked(label: str, values: npt.ArrayLike) -> Tensor:
    array = np.asarray(values)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise FoveateError(f"{label!r} holds {array.dtype} values: give true where an image is right, false where not")
    if array.ndim != 2 or not array.size:
        raise FoveateError(f"{label!r} has the shape {array.shape}: give (seeds, images), at least one of each")
    return torch.from_numpy(np.array(array, dtype=bool))


def _obstacle(found: Paired, classes: int | None) -> str | None:
    """Why there can be no verdict."""
    if classes == 1:
        return "all images are of one class"
    if found.images < FEWEST_IMAGES:
        images = "one validation image" if found.images == 1 else f"{found.images} validation images"
        return f"{images}, at least {FEWEST_IMAGES} are needed"
    if found.seeds == 1:
        return "one seed, at least two are needed"
    # Top-1 adds two images to what varies. Of the other scores nothing would say how little equal runs tell.
    if not found.added and not (found.single + found.rest + found.image).any():
        return "every run gives the same on every image, as networks do that have learned nothing"
    return None


def mean(values: Sequence[float]) -> float:
    """The mean of at least one number."""
    return sum(values) / len(values)


def table_rows(rows: Sequence[Row]) -> list[JsonObject]:
    """Rows of ``as_dicts`` as they stand in a CSV file: without lists and what only pictures and pages need."""
    hidden = ("sign", "power_text")
    return [{k: v for k, v in row.items() if k not in hidden and not k.endswith("_per_seed")} for row in rows]
