"""Plans side by side, fairly: the same weights at the start, the same images in the same order, several seeds."""

from __future__ import annotations

import copy
import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from foveate.accounting.cost import Cost, cost
from foveate.data import ImageData, open_data
from foveate.errors import FoveateError
from foveate.networks import create_model
from foveate.spec import Plan
from foveate.studies.statistics import Difference, accuracy, paired_difference
from foveate.surgery.insert import insert
from foveate.training.cache import FeatureCache
from foveate.training.loop import Fit, fit
from foveate.training.recipe import Recipe

__all__ = ["BASELINE", "Comparison", "Row", "compare"]

BASELINE = "none"


@dataclass(frozen=True)
class Row:
    """One plan of a comparison.

    Args:
        label: the plan as the user wrote it; ``none`` is the network without attention.
        cost: of the network with the plan, at the recipe's image size.
        top1: accuracy in percent, one for each seed.
        macro_f1: in percent, one for each seed.
        seconds: of training steps alone, one for each seed.
        difference: to the baseline, paired over seeds and images; None for the baseline itself.
    """

    label: str
    cost: Cost
    top1: tuple[float, ...]
    macro_f1: tuple[float, ...]
    seconds: tuple[float, ...]
    difference: Difference | None

    @property
    def verdict(self) -> str:
        """What the difference allows one to say, in words."""
        return self.difference.verdict if self.difference else "baseline"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``compare`` found.

    Args:
        rows: the baseline, then the plans in the order given.
        seeds: the seeds, each used for every plan.
        data: name of the data set.
        val_images: how many images the accuracies are measured on.
        recipe: the recipe of every run.
        folder: where runs, tables and report are, or None.
        models: for each label the trained network of the first seed.
        correct: for each label (S, N) bool, whether each validation image was right with each seed.
    """

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    data: str
    val_images: int
    recipe: Recipe
    folder: Path | None
    models: Mapping[str, nn.Module] = field(repr=False)
    correct: Mapping[str, Tensor] = field(repr=False)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The table as plain values, one dict for each plan."""
        return [
            {
                "plan": row.label,
                "params": row.cost.params,
                "macs": row.cost.macs,
                "top1": _mean(row.top1),
                "top1_per_seed": list(row.top1),
                "macro_f1": _mean(row.macro_f1),
                "macro_f1_per_seed": list(row.macro_f1),
                "difference": row.difference.mean if row.difference else None,
                "difference_low": row.difference.low if row.difference else None,
                "difference_high": row.difference.high if row.difference else None,
                "verdict": row.verdict,
                "seconds": _mean(row.seconds),
            }
            for row in self.rows
        ]

    def table(self) -> Table:
        """The table for a terminal; it fits into 80 columns."""
        seeds = f"mean of {len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        title = f"{self.data}: {self.val_images} validation images, {seeds}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("plan", overflow="fold", min_width=20)
        for heading in ("params", "MACs", "top-1 %", "F1 %", "difference [95%]"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.label,
                f"{row.cost.params / 1e6:.3f}M",
                f"{row.cost.macs / 1e6:.1f}M",
                f"{_mean(row.top1):.1f}",
                f"{_mean(row.macro_f1):.1f}",
                str(row.difference or ""),
            )
        return table

    def print(self, console: Console | None = None) -> None:
        """Print the table, a verdict in words for each plan, and how to read them."""
        console = console or Console()
        console.print(self.table())
        for row in self.rows[1:]:
            console.print(f"{row.label}: [bold]{row.verdict}[/]", highlight=False)
        console.print(
            "The difference is in points of top-1 against 'none', paired over seeds and images, with a 95% interval.",
            style="dim",
        )

    def write_csv(self, folder: Path) -> tuple[Path, Path]:
        """Write ``comparison.csv``, a row a plan, and ``runs.csv``, a row a plan and seed."""
        rows = [{k: v for k, v in row.items() if not k.endswith("_per_seed")} for row in self.as_dicts()]
        runs = [
            {"plan": row.label, "seed": seed, "top1": top1, "macro_f1": macro_f1, "seconds": seconds}
            for row in self.rows
            for seed, top1, macro_f1, seconds in zip(self.seeds, row.top1, row.macro_f1, row.seconds, strict=True)
        ]
        return _write_csv(folder / "comparison.csv", rows), _write_csv(folder / "runs.csv", runs)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return path


def _labelled(plans: str | Plan | Sequence[str | Plan] | Mapping[str, str | Plan]) -> dict[str, Plan | None]:
    if isinstance(plans, str | Plan):
        plans = [plans]
    pairs = plans.items() if isinstance(plans, Mapping) else [(str(plan), plan) for plan in plans]
    found: dict[str, Plan | None] = {BASELINE: None}
    for label, plan in pairs:
        if label in found and label != BASELINE:
            raise FoveateError(f"the plan {label!r} is given twice")
        if str(plan) != BASELINE:
            found[label] = Plan.parse(plan)
    if len(found) == 1:
        raise FoveateError("compare needs at least one plan, such as 'ulsam after blocks.4.2'")
    return found


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not found or len(set(found)) != len(found):
        raise FoveateError(f"seeds={seeds!r}: give a number of seeds, at least 1, or different seeds")
    return found


def _factory(model: str | nn.Module | Callable[[int], nn.Module], pretrained: bool) -> Callable[[int], nn.Module]:
    """A function seed -> a new network: the same one for the same seed."""

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(model, str):
                return create_model(model, pretrained=pretrained)
            return copy.deepcopy(model) if isinstance(model, nn.Module) else model(seed)

    return build


def _folder_name(index: int, label: str, seed: int) -> str:
    words = re.sub(r"[^A-Za-z0-9.]+", "_", label).strip("_")[:60]
    return f"{index}_{words}/seed{seed}"


def compare(
    model: str | nn.Module | Callable[[int], nn.Module],
    plans: str | Plan | Sequence[str | Plan] | Mapping[str, str | Plan],
    data: str | os.PathLike[str] | ImageData,
    recipe: Recipe | None = None,
    seeds: int | Sequence[int] = 3,
    *,
    start: str | None = None,
    pretrained: bool = False,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    cache: FeatureCache | None = None,
) -> Comparison:
    """Train a network without attention and with each plan, for several seeds, and compare.

    For one seed every plan starts from the same shared weights, and sees the same images in the same order.

    Args:
        model: a name for ``create_model``, a network (copied, never changed), or a function seed -> network.
        plans: one plan, several, or label -> plan. The network without attention is always the first row, ``none``.
        data: whatever ``open_data`` takes.
        recipe: of every run; its seed is replaced by each of ``seeds``.
        seeds: how many (0, 1, ...), or the seeds themselves.
        start: as in ``insert``.
        pretrained: with a model's name, start from its ImageNet weights.
        output: folder for the runs (each as ``fit`` writes it), ``comparison.csv`` and ``runs.csv``.
        resume: go on with the comparison in ``output``: finished runs are read, not run again.
        progress: show a bar and a line for each epoch.
        cache: a frozen trunk's features, to be shared with other calls.

    Raises:
        FoveateError: what ``open_data``, ``insert`` and ``fit`` raise. Every plan is tried on the network before the
            first training step.
    """
    recipe = recipe or Recipe()
    labelled, chosen, build = _labelled(plans), _seeds(seeds), _factory(model, pretrained)
    data = open_data(data)
    cache = cache if cache is not None else FeatureCache()
    folder = Path(output) if output is not None else None
    for plan in labelled.values():  # a plan that does not fit is found before the first hour of training
        _with_plan(build(chosen[0]), plan, recipe, start, 0)
    fits: dict[str, list[Fit]] = {label: [] for label in labelled}
    models: dict[str, nn.Module] = {}
    console = Console(stderr=True, quiet=not progress)
    total = len(labelled) * len(chosen)
    for seed in chosen:
        for index, (label, plan) in enumerate(labelled.items()):
            run = chosen.index(seed) * len(labelled) + index + 1
            console.rule(f"run {run} of {total}: {label}, seed {seed}", align="left", style="dim")
            network = _with_plan(build(seed), plan, recipe, start, seed)
            place = folder / _folder_name(index, label, seed) if folder else None
            one = recipe.with_(seed=seed)
            result = fit(network, data, one, output=place, resume=resume, progress=progress, cache=cache)
            fits[label].append(result)
            if seed == chosen[0]:
                models[label] = network
    costs = {label: cost(network, recipe.image_size) for label, network in models.items()}
    found = _collect(labelled, fits, costs, chosen, data, recipe, folder, models)
    if folder:
        found.write_csv(folder)
    return found


def _with_plan(network: nn.Module, plan: Plan | None, recipe: Recipe, start: str | None, seed: int) -> nn.Module:
    return network if plan is None else insert(network, plan, start=start, seed=seed, input_size=recipe.image_size)


def _collect(
    labelled: Mapping[str, Plan | None],
    fits: Mapping[str, list[Fit]],
    costs: Mapping[str, Cost],
    seeds: tuple[int, ...],
    data: ImageData,
    recipe: Recipe,
    folder: Path | None,
    models: Mapping[str, nn.Module],
) -> Comparison:
    correct = {
        label: torch.stack([f.evaluation.predictions == f.evaluation.labels for f in runs])
        for label, runs in fits.items()
    }
    rows = tuple(
        Row(
            label,
            costs[label],
            tuple(accuracy(correct[label])),
            tuple(100 * f.evaluation.macro_f1 for f in fits[label]),
            tuple(recipe.epochs * len(data.train) / (f.images_per_second or float("inf")) for f in fits[label]),
            None if plan is None else paired_difference(correct[label], correct[BASELINE]),
        )
        for label, plan in labelled.items()
    )
    return Comparison(rows, seeds, data.name, len(data.val), recipe, folder, models, correct)
