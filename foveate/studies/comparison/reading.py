"""A comparison from the results of its runs, as they were made or read again from their folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.studies.comparison.analysis import analyse_runs
from foveate.studies.comparison.config import BASELINE, RUNS, Setup
from foveate.studies.comparison.factors.analysis import FactorAnalysis, analyse_factors
from foveate.studies.comparison.margin import check_margin
from foveate.studies.comparison.results import Comparison, Row
from foveate.studies.comparison.run import RunResult, read_result
from foveate.training.metrics import Diverged

__all__ = ["collect", "diverged_plans", "read_comparison"]


def diverged_plans(setup: Setup, results: Mapping[str, RunResult]) -> dict[str, str]:
    """For each plan of which a run diverged the seed and what was said of the first such run."""
    found: dict[str, str] = {}
    for label, names in setup.runs.items():
        for seed, name in zip(setup.seeds, names, strict=True):
            if results[name].diverged:
                found.setdefault(label, f"seed {seed}: {results[name].diverged}")
    return found


def collect(
    setup: Setup, results: Mapping[str, RunResult], folder: Path | None, models: Mapping[str, nn.Module]
) -> Comparison:
    """Put the results of runs, by name, together.

    A plan of which a run diverged is left out of what is compared, and named in ``diverged``.

    Raises:
        Diverged: a run of the baseline diverged, or one of each plan.
    """
    diverged = diverged_plans(setup, results)
    if BASELINE in diverged or len(diverged) == len(setup.runs) - 1:
        label = BASELINE if BASELINE in diverged else next(iter(diverged))
        raise Diverged(f"{label}, {diverged[label]}")
    setup = replace(setup, runs={label: names for label, names in setup.runs.items() if label not in diverged})
    of_label = {label: [results[name] for name in names] for label, names in setup.runs.items()}
    measure, labels = setup.measure, results[setup.runs[BASELINE][0]].labels
    predictions = {label: torch.stack([r.predictions for r in found]) for label, found in of_label.items()}
    analysis = analyse_runs(measure, predictions, labels, BASELINE, setup.margin, measure.classes_in(labels))
    analyses = {row.label: row for row in analysis.rows}
    rows = []
    for label, found in of_label.items():
        # What only some runs have (a newer version measures more) is left out.
        names = [name for name in found[0].scores if all(name in r.scores for r in found)]
        scores = {name: tuple(r.scores[name] for r in found) for name in names}
        scores[measure.key] = analysis.accuracies[label]
        seconds = tuple(r.seconds for r in found)
        rate = setup.learning_rate(label)
        rows.append(Row(label, found[0].cost, rate, scores, seconds, analyses.get(label), measure))
    timing = tuple(
        {"plan": label, "seed": seed, "seconds": r.seconds, "images_per_second": r.images_per_second, **r.made_with}
        for label, found in of_label.items()
        for seed, r in zip(setup.seeds, found, strict=True)
    )
    kinds = {json.dumps(dict(r.made_with), sort_keys=True): r.made_with for found in of_label.values() for r in found}
    obstacle = analysis.rows[0].obstacle
    factors: tuple[FactorAnalysis, ...] = ()
    whole = [rows for rows in setup.families if diverged.keys().isdisjoint(rows.labels)]
    if whole:
        values = {label: measure.values(of, labels) for label, of in predictions.items()}
        factors = analyse_factors(whole, values, BASELINE, obstacle, measure)
    kept = measure.of_images(predictions, labels)
    return Comparison(
        tuple(rows),
        setup,
        folder,
        models,
        made_with=tuple(kinds.values()),
        timing=timing,
        factors=factors,
        diverged=diverged,
        **kept,
    )


def read_comparison(folder: str | Path, margin: float | None = None) -> Comparison:
    """A comparison from the folder that ``compare`` wrote, without its data and without training.

    Args:
        folder: the ``output`` of ``compare``.
        margin: in points: also say whether each plan is worse by more than that. Without it the one that ``compare``
            was given, if any.

    Returns:
        The comparison, without its trained networks.

    Raises:
        FoveateError: the folder holds none, or some runs are not finished.
        Diverged: a run of the network without attention diverged, or one of each plan.
    """
    folder = Path(folder)
    setup = Setup.read(folder)
    if margin is not None:
        setup = replace(setup, margin=check_margin(margin))
    names = [name for of_label in setup.runs.values() for name in of_label]
    found = {name: result for name in names if (result := read_result(folder / RUNS / name)) is not None}
    if len(found) < len(set(names)):
        done = f"{len(found)} of {len(set(names))} runs are finished"
        raise FoveateError(f"{folder}: {done}; the command that made it goes on with the rest")
    return collect(setup, found, folder, {})
