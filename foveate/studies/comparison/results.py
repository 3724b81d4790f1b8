"""What a comparison found: a row for each plan, as a table, as CSV files, and read again from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from foveate.studies.comparison.analysis import mean, table_rows
from foveate.studies.comparison.config import BASELINE, Setup
from foveate.studies.comparison.factors.analysis import FactorAnalysis, effects_table, effects_text
from foveate.studies.comparison.factors.levels import groups_of, levels_of
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.comparison.plan_analysis import PlanAnalysis
from foveate.studies.comparison.statistics import Difference
from foveate.studies.reporting.terminal_table import terminal_table
from foveate.training.metrics import Diverged
from foveate.training.recipes.recipe import Recipe

__all__ = ["Comparison", "Row"]


@dataclass(frozen=True)
class Row:
    """One plan of a comparison.

    Args:
        label: the plan as the user wrote it; ``none`` is the network without attention.
        cost: of the network with the plan, at the recipe's image size.
        learning_rate: of its runs.
        scores: name -> a value for each seed; shares, such as accuracies, mIoU, mAP, F1 and ECE, in percent.
        seconds: wall time of the training, one for each seed.
        analysis: against the baseline; None for the baseline itself.
        measure: what the plans are compared by.
    """

    label: str
    cost: Cost
    learning_rate: float
    scores: Mapping[str, tuple[float, ...]]
    seconds: tuple[float, ...]
    analysis: PlanAnalysis | None
    measure: Measure = TOP1

    @property
    def score(self) -> tuple[float, ...]:
        """What the plans are compared by, in percent, one for each seed: top-1, mIoU or mAP."""
        return self.scores[self.measure.key]

    @property
    def second(self) -> tuple[float, ...]:
        """Another score that is shown beside it, in percent, one for each seed: macro-F1, pixel accuracy or mAP50."""
        return self.scores[self.measure.second[0]]

    @property
    def top1(self) -> tuple[float, ...]:
        """Accuracy in percent, one for each seed, of classification."""
        return self._of_classes("top1")

    @property
    def macro_f1(self) -> tuple[float, ...]:
        """In percent, one for each seed, of classification."""
        return self._of_classes("macro_f1")

    def _of_classes(self, name: str) -> tuple[float, ...]:
        if name not in self.scores:
            raise FoveateError(f"{name} is of classification, and here is {self.measure.name}: take row.score")
        return self.scores[name]

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
            f"{self.measure.key}_per_seed": list(self.score),
            f"{self.measure.second[0]}_per_seed": list(self.second),
        }
        statistics = self.analysis.as_dict() if self.analysis else PlanAnalysis.of_baseline()
        return found | statistics | {"seconds": mean(self.seconds)}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``compare`` found.

    Args:
        rows: the baseline, then the plans in the order given.
        setup: what was asked for, with the runs of the rows.
        folder: where runs, tables and report are, or None.
        models: for each label the trained network of the first seed, without those whose runs came from a table of
            runs; empty when read by ``read_comparison``.
        correct: for each label (S, N) bool, whether each validation image was right with each seed; empty where images
            are neither right nor wrong, as in segmentation and detection.
        made_with: the different versions, machines and numbers of threads that the runs were made with.
        timing: a row for each run: where it was made and how long it took.
        factors: what varies in the families that were compared, with its effect; empty without families.
        predictions: for each label (S, N) int, the class that each seed's network gave to each validation image.
        labels: (N,) int, the true classes; None without runs.
        counts: of segmentation, for each label (S, N, K, 3) int: of each image and class the pixels that are right,
            predicted and actual, as in ``SegmentationEvaluation.counts``.
        boxes: of detection, for each label (S, N, 100, 8): of each image the boxes, as left, top, right, bottom, score,
            class (-1 where there is no box) and two numbers that say at which thresholds of intersection over union
            they are right and count.
        objects: of detection (N, K) int, how many objects of each class that count are in each image.
        diverged: for each plan that is not compared, for one of its runs diverged, the seed and what was said of it.
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
    counts: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    boxes: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    objects: Tensor | None = field(default=None, repr=False)
    diverged: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        plans, seeds = len(self.rows) - 1, len(self.seeds)
        of = f"{plans} plan{'s' * (plans != 1)} with {self.rows[0].label!r}"
        return f"<Comparison of {of} on {self.setup.data}, {seeds} seed{'s' * (seeds != 1)}: {self.measure.column}>"

    def __str__(self) -> str:
        lines = [f"{row.label}: {mean(row.score):.1f}; {row.verdict}" for row in self.rows]
        return "\n".join([repr(self)[1:-1], *lines, *self.left_out])

    @property
    def left_out(self) -> list[str]:
        """A sentence for each plan that is not compared, and for each family whose effects that takes away."""
        plans = [f"{label}: not compared, for a run diverged: {why}" for label, why in self.diverged.items()]
        families = [rows for rows in self.setup.families if not self.diverged.keys().isdisjoint(rows.labels)]
        return plans + [f"{rows.family}: no effects of what varies, for not all of it is compared" for rows in families]

    def require_all(self) -> None:
        """Make sure that no plan is left out.

        Raises:
            Diverged: a run of a plan diverged, so that it is not compared.
        """
        if self.diverged:
            raise Diverged("; ".join(self.left_out))

    @property
    def measure(self) -> Measure:
        """What the plans are compared by."""
        return self.setup.measure

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each was used for every plan."""
        return self.setup.seeds

    @property
    def recipe(self) -> Recipe:
        """Of every run, but for the seed and, with tuning, the learning rate."""
        return self.setup.recipe

    def class_scores(self, plans: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """For each of these plans what its classes have of the score, (S, K), and the images of each class, (K,).

        Of segmentation and detection: see ``Measure.class_scores``.
        """
        kept, labels = self.counts or self.boxes, self.objects if self.objects is not None else torch.empty(0)
        return {label: self.measure.class_scores(kept[label], labels) for label in plans}

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
                self.measure.column: [f"{mean(row.score):.1f}" for row in self.rows],
                self.measure.second[1]: [f"{mean(row.second):.1f}" for row in self.rows],
                "difference [95%]": [str(row.difference or "") for row in self.rows],
            },
            title=f"{self.setup.data}: {self.setup.val_images} validation images, {seeds}",
            # The interval is in the verdict below, too.
            leave_out=(self.measure.second[1], "params", "MACs", "difference [95%]"),
            ends=[n for n in range(len(groups) - 1) if groups[n] != groups[n + 1]],
            console=console,
        )

    def _repr_html_(self) -> str:
        rows = [
            (
                *(row.label, f"{row.cost.params:,}", f"{row.cost.macs:,}"),
                *(f"{mean(row.score):.1f}", f"{mean(row.second):.1f}"),
                *(row.difference, row.verdict, row.analysis.power_text if row.analysis else None),
            )
            for row in self.rows
        ]
        scores = (self.measure.column, self.measure.second[1])
        headings = ["plan", "parameters", "MACs", *scores, "difference [95%]", "verdict", "what would be seen"]
        head = f"{self.setup.data}: {self.setup.val_images} validation images, {len(self.seeds)} seeds"
        notes = [*self.left_out, *(factor.text for factor in self.factors), self.tuning_words]
        notes += [f"in {self.folder}"] * bool(self.folder)
        return html_lines(head) + html_table(headings, rows, right=range(1, 6)) + html_lines("", notes)

    def print(self, console: Console | None = None) -> None:
        """Print the table, a verdict in words for each plan, and how to read them."""
        console = console or Console()
        console.print(self.table(console))
        for row in self.rows[1:]:
            console.print(f"{escape(row.label)}: [bold]{row.verdict}[/]", highlight=False)
            console.print(f"  {escape(row.analysis.power_text if row.analysis else '')}", style="dim", highlight=False)
        for line in self.left_out:
            console.print(escape(line), highlight=False)
        if self.factors:
            console.print(effects_table(self.factors, console))
            for factor in self.factors:
                console.print(escape(factor.text), highlight=False)
            console.print(effects_text(self.measure), style="dim", highlight=False)
        explained = (
            f"The difference is in points of {self.measure.name} against 'none', paired over seeds and images, with a "
            "95% interval; p_Holm is corrected for the number of plans."
        )
        console.print(f"{escape(self.tuning_words)}\n{explained}", style="dim", highlight=False)

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
        tables: dict[str, Any] = {"comparison.csv": self.plan_rows(), "runs.csv": self.run_rows()}
        tables["timing.csv"] = self.timing
        if self.factors:
            tables["factors.csv"] = self.factor_rows()
        else:
            (folder / "factors.csv").unlink(missing_ok=True)  # of another comparison in the same folder
        return tuple(write_csv(folder / name, table, digits=6) for name, table in tables.items())

    def factor_rows(self) -> list[JsonObject]:
        """A row for each level of each factor."""
        return [row for factor in self.factors for row in factor.as_dicts()]

    def plan_rows(self) -> list[JsonObject]:
        """A row for each plan, without times; of one that diverged it has the verdict alone."""
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in table_rows(self.as_dicts())]
        said = [{"plan": label, "verdict": "diverged", "verdict_text": why} for label, why in self.diverged.items()]
        rows += [dict.fromkeys(rows[0]) | row for row in said]
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
