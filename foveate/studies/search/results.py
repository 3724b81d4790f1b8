"""What a search found: every plan that was tried, the front of accuracy and cost, and what compare said of the best."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foveate.accounting.cost import Cost
from foveate.errors import FoveateError
from foveate.html import html_lines, html_table
from foveate.io import JsonObject, write_csv
from foveate.spec import Plan
from foveate.studies.comparison.config import BASELINE
from foveate.studies.comparison.results import Comparison
from foveate.studies.reporting.terminal_table import terminal_table
from foveate.studies.search.costs import Budget

__all__ = ["Search", "Trial"]


@dataclass(frozen=True)
class Trial:
    """One plan that was tried.

    Args:
        plan: the plan.
        cost: parameters and MACs of the network with it.
        top1: after so many epochs, accuracy in percent on the images held out of the training images.
        diverged: why its training broke off, or None; what it had reached before is in ``top1``, and is not a score.
        latency: of one image, as a multiple of the time without the plan; None where it was not measured.
    """

    plan: Plan
    cost: Cost
    top1: Mapping[int, float]
    diverged: str | None = None
    latency: float | None = None

    @property
    def epochs(self) -> int:
        """How long it was trained."""
        return max(self.top1, default=0)

    @property
    def score(self) -> float | None:
        """The accuracy after the longest training; None where it diverged, then or later."""
        return None if self.diverged or not self.top1 else self.top1[self.epochs]

    @property
    def rank(self) -> tuple[float, ...]:
        """A key that puts the best trial first: trained longest, most accurate, cheapest; those that diverged last."""
        return self.score is None, -self.epochs, -(self.score or 0.0), self.cost.macs, self.cost.params


@dataclass(frozen=True, eq=False)
class Search:
    """What ``search`` found.

    Args:
        family: with names of sites.
        budget: what was allowed.
        baseline: the cost of the network without a plan.
        trials: the best first.
        finalists: the plans that were compared, or would be.
        comparison: of the finalists and the network without attention, on the validation images; None without seeds.
        counts: plans of the family, those that do not fit the network, and those over the budget; the last two are
            None where the family is too large to look at all of it.
        seconds: the wall time of this call.
        training_seconds: of it, what ``fit`` took in this process.
        folder: where everything is, or None.
    """

    family: str
    budget: Budget
    baseline: Cost
    trials: tuple[Trial, ...]
    finalists: tuple[Plan, ...]
    comparison: Comparison | None
    counts: tuple[int, int | None, int | None]
    seconds: float
    training_seconds: float
    folder: Path | None = field(default=None)

    def __repr__(self) -> str:
        return f"<Search of {self.family!r}: trials: {len(self.trials)}, finalists: {len(self.finalists)}>"

    def __str__(self) -> str:
        found = f"best: {self.best.plan}: {self.verdict}" if self.finalists else "every trial diverged"
        return f"{repr(self)[1:-1]}\n{found}"

    @property
    def best(self) -> Trial:
        """The finalist with the best mean accuracy in the comparison; without one, the first trial.

        ``best.plan`` is what to insert. Whether it is better than no plan, ``verdict`` says.

        Raises:
            FoveateError: every trial diverged.
        """
        if not self.finalists:
            raise FoveateError("every trial of the search diverged: take a lower learning rate")
        chosen = str(self.finalists[0])
        if self.comparison is not None:
            rows = [row for row in self.comparison.rows if row.label != BASELINE]
            chosen = max(rows, key=lambda row: sum(row.top1) / len(row.top1)).label
        return next(trial for trial in self.trials if str(trial.plan) == chosen)

    @property
    def verdict(self) -> str:
        """What the comparison allows one to say of the best plan against none."""
        if self.comparison is None:
            return "not compared: a search alone is no evidence, for it reports the best of many"
        return next(row.verdict for row in self.comparison.rows if row.label == str(self.best.plan))

    @property
    def front(self) -> tuple[Trial, ...]:
        """Of the trials that were trained longest, those that none beats in accuracy, MACs and parameters at once."""
        whole = [trial for trial in self.trials if trial.score is not None]
        longest = max((trial.epochs for trial in whole), default=0)
        last = [trial for trial in whole if trial.epochs == longest]
        return tuple(trial for trial in last if not any(_beats(other, trial) for other in last))

    def as_dicts(self) -> list[JsonObject]:
        """A row for each trial, the best first."""
        front, finalists = {id(trial) for trial in self.front}, set(map(str, self.finalists))
        return [
            {
                "plan": str(trial.plan),
                "params": trial.cost.params,
                "macs": trial.cost.macs,
                "epochs": trial.epochs,
                "held_out_top1": trial.score,
                "latency": trial.latency,
                "front": id(trial) in front,
                "finalist": str(trial.plan) in finalists,
                "diverged": trial.diverged,
            }
            for trial in self.trials
        ]

    def to_csv(self, file: str | os.PathLike[str]) -> Path:
        """Write a line for each trial.

        Raises:
            FoveateError: the file cannot be written.
        """
        return write_csv(Path(file), self.as_dicts(), digits=6)

    def table(self, most: int = 20, console: Console | None = None) -> Table:
        """The best trials for a terminal; a narrow one has fewer columns of numbers.

        Args:
            most: how many.
            console: where it will be printed; without it a terminal of 80 columns.
        """
        trials = self.trials[:most]
        return terminal_table(
            [str(trial.plan) for trial in trials],
            {
                "params": [f"{trial.cost.params / 1e6:.3f}M" for trial in trials],
                "MACs": [f"{trial.cost.macs / 1e6:.1f}M" for trial in trials],
                "epochs": [str(trial.epochs) for trial in trials],
                "held-out %": ["diverged" if trial.score is None else f"{trial.score:.1f}" for trial in trials],
            },
            title=f"The best of {len(self.trials)} trials",
            leave_out=("epochs", "params", "MACs"),
            console=console,
        )

    def _repr_html_(self) -> str:
        rows = [
            (
                trial.plan,
                *(f"{trial.cost.params:,}", f"{trial.cost.macs:,}", trial.epochs),
                "diverged" if trial.score is None else f"{trial.score:.1f}",
                "yes" if trial.plan in self.finalists else "",
            )
            for trial in self.trials
        ]
        headings = ("plan", "parameters", "MACs", "epochs", "held-out top-1 %", "compared")
        compared = self.comparison._repr_html_() if self.comparison is not None else ""
        return html_lines("", self.lines()) + html_table(headings, rows, right=range(1, 5)) + compared

    def print(self, console: Console | None = None) -> None:
        """Print the trials, the comparison of the finalists, and what can be said."""
        console = console or Console()
        console.print(self.table(console=console))
        if self.comparison is not None:
            self.comparison.print(console)
        for line in self.lines():
            console.print(escape(line), highlight=False)

    def lines(self) -> list[str]:
        """The search in sentences."""
        size, unfit, over = self.counts
        looked = f"The family has {size:,} plans"
        if unfit is not None and over is not None:
            looked += f": {unfit:,} do not fit the network, {over:,} are over the budget"
        return [
            f"{looked}; {len(self.trials)} were tried. Budget: {self.budget}.",
            "Trials were judged by images held out of the training images; the validation images took no part.",
            *([f"Best: {self.best.plan}", f"Against none: {self.verdict}."] if self.finalists else []),
        ]


def _beats(one: Trial, other: Trial) -> bool:
    """Whether one is at least as good in everything, and better in something."""
    ours, theirs = ((-(t.score or 0.0), t.cost.macs, t.cost.params) for t in (one, other))
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))
