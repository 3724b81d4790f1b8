"""What a comparison found: a row for each plan, as a table, as CSV files, and read again from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from foveate.accounting.cost import Cost
from foveate.errors import FoveateError
from foveate.html import html_lines, html_table
from foveate.io import JsonObject, write_csv
from foveate.studies.comparison.analysis import analyse, mean, table_rows
from foveate.studies.comparison.config import BASELINE, RUNS, Setup
from foveate.studies.comparison.factors.analysis import EFFECTS, FactorAnalysis, analyse_factors, effects_table
from foveate.studies.comparison.factors.levels import groups_of, levels_of
from foveate.studies.comparison.margin import check_margin
from foveate.studies.comparison.plan_analysis import PlanAnalysis
from foveate.studies.comparison.run import RunResult, read_result
from foveate.studies.comparison.statistics import Difference
from foveate.studies.reporting.terminal_table import terminal_table
from foveate.training.recipes.recipe import Recipe

__all__ = ["Comparison", "Row", "collect", "read_comparison"]


@dataclass(frozen=True)
class Row:
    """One plan of a comparison.

    Args:
        label: the plan as the user wrote it; ``none`` is the network without attention.
        cost: of the network with the plan, at the recipe's image size.
        learning_rate: of its runs.
        scores: name -> a value for each seed; accuracies, F1 and ECE in percent.
        seconds: wall time of the training, one for each seed.
        analysis: against the baseline; None for the baseline itself.
    """

    label: str
    cost: Cost
    learning_rate: float
    scores: Mapping[str, tuple[float, ...]]
    seconds: tuple[float, ...]
    analysis: PlanAnalysis | None

    @property
    def top1(self) -> tuple[float, ...]:
        """Accuracy in percent, one for each seed."""
        return self.scores["top1"]

    @property
    def macro_f1(self) -> tuple[float, ...]:
        """In percent, one for each seed."""
        return self.scores["macro_f1"]

    @property
    def difference(self) -> Difference | None:
        """To the baseline, paired over seeds and images; None for the baseline itself."""
        return self.analysis.difference if self.analysis else None

    @property
    def verdict(self) -> str:
        """What the difference allows one to say, in words."""
        return self.analysis.verdict if self.analysis else "baseline"

    def as_dict(self) -> JsonObject:
        """The row as plain values; what the baseline does not have is None."""
        found: JsonObject = {
            "plan": self.label,
            "params": self.cost.params,
            "macs": self.cost.macs,
            "learning_rate": self.learning_rate,
            **{name: mean(values) for name, values in self.scores.items()},
            "top1_per_seed": list(self.top1),
            "macro_f1_per_seed": list(self.macro_f1),
        }
        statistics = self.analysis.as_dict() if self.analysis else PlanAnalysis.of_baseline()
        return found | statistics | {"seconds": mean(self.seconds)}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``compare`` found.

    Args:
        rows: the baseline, then the plans in the order given.
        setup: what was asked for.
        folder: where runs, tables and report are, or None.
        models: for each label the trained network of the first seed; empty when read by ``read_comparison``.
        correct: for each label (S, N) bool, whether each validation image was right with each seed.
        made_with: the different versions, machines and numbers of threads that the runs were made with.
        timing: a row for each run: where it was made and how long it took.
        factors: what varies in the families that were compared, with its effect; empty without families.
        predictions: for each label (S, N) int, the class that each seed's network gave to each validation image.
        labels: (N,) int, the true classes; None without runs.
    """

    rows: tuple[Row, ...]
    setup: Setup
    folder: Path | None
    models: Mapping[str, nn.Module] = field(repr=False)
    correct: Mapping[str, Tensor] = field(repr=False)
    made_with: tuple[Mapping[str, str], ...] = field(repr=False)
    timing: tuple[Mapping[str, Any], ...] = field(repr=False)
    factors: tuple[FactorAnalysis, ...] = field(default=(), repr=False)
    predictions: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    labels: Tensor | None = field(default=None, repr=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each was used for every plan."""
        return self.setup.seeds

    @property
    def recipe(self) -> Recipe:
        """Of every run, but for the seed and, with tuning, the learning rate."""
        return self.setup.recipe

    def as_dicts(self) -> list[JsonObject]:
        """The table as plain values, one dict for each plan."""
        return [row.as_dict() for row in self.rows]

    def table(self, console: Console | None = None) -> Table:
        """The table for a terminal; it fits into 80 columns, and a narrower one has fewer columns of numbers.

        Args:
            console: where it will be printed; without it a terminal of 80 columns.
        """
        seeds = f"mean of {len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        groups = [groups_of(self.setup.families).get(row.label) for row in self.rows]
        return terminal_table(
            [row.label for row in self.rows],
            {
                "params": [f"{row.cost.params / 1e6:.3f}M" for row in self.rows],
                "MACs": [f"{row.cost.macs / 1e6:.1f}M" for row in self.rows],
                "top-1 %": [f"{mean(row.top1):.1f}" for row in self.rows],
                "F1 %": [f"{mean(row.macro_f1):.1f}" for row in self.rows],
                "difference [95%]": [str(row.difference or "") for row in self.rows],
            },
            title=f"{self.setup.data}: {self.setup.val_images} validation images, {seeds}",
            leave_out=("F1 %", "params", "MACs", "difference [95%]"),  # the interval is in the verdict below, too
            ends=[n for n in range(len(groups) - 1) if groups[n] != groups[n + 1]],
            console=console,
        )

    def _repr_html_(self) -> str:
        rows = [
            (
                row.label,
                *(f"{row.cost.params:,}", f"{row.cost.macs:,}", f"{mean(row.top1):.1f}", f"{mean(row.macro_f1):.1f}"),
                row.difference,
                row.verdict,
                row.analysis.power_text if row.analysis else None,
            )
            for row in self.rows
        ]
        headings = [
            "plan",
            "parameters",
            "MACs",
            "top-1 %",
            "F1 %",
            "difference [95%]",
            "verdict",
            "what would be seen",
        ]
        head = f"{self.setup.data}: {self.setup.val_images} validation images, {len(self.seeds)} seeds"
        notes = [*(factor.text for factor in self.factors), self.tuning_words, f"in {self.folder}" * bool(self.folder)]
        return html_lines(head) + html_table(headings, rows, right=range(1, 6)) + html_lines("", notes)

    def print(self, console: Console | None = None) -> None:
        """Print the table, a verdict in words for each plan, and how to read them."""
        console = console or Console()
        console.print(self.table(console))
        for row in self.rows[1:]:
            console.print(f"{escape(row.label)}: [bold]{row.verdict}[/]", highlight=False)
            if row.analysis:
                console.print(f"  {escape(row.analysis.power_text)}", style="dim", highlight=False)
        if self.factors:
            console.print(effects_table(self.factors, console))
            for factor in self.factors:
                console.print(escape(factor.text), highlight=False)
            console.print(EFFECTS, style="dim", highlight=False)
        console.print(escape(self.tuning_words), style="dim", highlight=False)
        console.print(
            "The difference is in points of top-1 against 'none', paired over seeds and images, with a 95% interval; "
            "p_Holm is corrected for the number of plans.",
            style="dim",
            highlight=False,
        )

    @property
    def tuning_words(self) -> str:
        """How the learning rates came about."""
        if self.setup.tuning:
            return str(self.setup.tuning)
        return "One recipe for all plans: none was tuned. It may suit one plan better than another."

    def write_csv(self, folder: Path) -> tuple[Path, ...]:
        """Write ``comparison.csv``, a row a plan; ``runs.csv``, a row a run; ``timing.csv``, which alone holds times.

        The first two are the same, byte for byte, however often the grid was broken off and whoever did the runs, as
        long as these were of one kind of machine and one number of threads.
        """
        tables: dict[str, Sequence[Mapping[str, Any]]]
        tables = {"comparison.csv": self.plan_rows(), "runs.csv": self.run_rows(), "timing.csv": self.timing}
        if self.factors:
            tables["factors.csv"] = self.factor_rows()
        return tuple(write_csv(folder / name, table, digits=6) for name, table in tables.items())

    def factor_rows(self) -> list[JsonObject]:
        """A row for each level of each factor."""
        return [row for factor in self.factors for row in factor.as_dicts()]

    def plan_rows(self) -> list[JsonObject]:
        """A row for each plan, without times."""
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in table_rows(self.as_dicts())]
        levels = levels_of(self.setup.families, BASELINE)
        return [row | {f"factor {name}": of.get(row["plan"]) for name, of in levels.items()} for row in rows]

    def run_rows(self) -> list[JsonObject]:
        """A row for each run, without times."""
        return [
            {"plan": row.label, "seed": seed, "learning_rate": row.learning_rate}
            | {name: values[k] for name, values in row.scores.items()}
            | {"run": self.setup.runs[row.label][k]}
            for row in self.rows
            for k, seed in enumerate(self.seeds)
        ]


def collect(
    setup: Setup, results: Mapping[str, RunResult], folder: Path | None, models: Mapping[str, nn.Module]
) -> Comparison:
    """Put the results of runs, by name, together."""
    of_label = {label: [results[name] for name in names] for label, names in setup.runs.items()}
    labels = results[setup.runs[BASELINE][0]].labels
    predictions = {label: torch.stack([r.predictions for r in found]) for label, found in of_label.items()}
    correct = {label: torch.stack([r.predictions == r.labels for r in found]) for label, found in of_label.items()}
    analysis = analyse(correct, BASELINE, setup.margin, labels=labels)
    analyses = {row.label: row for row in analysis.rows}
    rows = []
    for label, found in of_label.items():
        # What only some runs have (a newer version measures more) is left out.
        names = [name for name in found[0].scores if all(name in r.scores for r in found)]
        scores = {name: tuple(r.scores[name] for r in found) for name in names}
        scores["top1"] = analysis.accuracies[label]
        seconds = tuple(r.seconds for r in found)
        rows.append(Row(label, found[0].cost, setup.learning_rate(label), scores, seconds, analyses.get(label)))
    timing = tuple(
        {"plan": label, "seed": seed, "seconds": r.seconds, "images_per_second": r.images_per_second, **r.made_with}
        for label, found in of_label.items()
        for seed, r in zip(setup.seeds, found, strict=True)
    )
    kinds = {json.dumps(dict(r.made_with), sort_keys=True): r.made_with for found in of_label.values() for r in found}
    obstacle = analysis.rows[0].obstacle
    factors = analyse_factors(setup.families, correct, BASELINE, obstacle)
    made_with = tuple(kinds.values())
    return Comparison(tuple(rows), setup, folder, models, correct, made_with, timing, factors, predictions, labels)


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
