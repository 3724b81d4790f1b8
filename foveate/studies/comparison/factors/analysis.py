"""What the plans of a family, together, say of each thing that varies: effects with intervals, a test, a sentence.

Numbers in order are tested for a trend: a straight line over equal steps (1, 2, 4, 8: three steps). What else has
more than two levels is tested by an F test, two levels by their difference. Holm's correction is over all factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from foveate.io import JsonObject
from foveate.studies.comparison.factors.contrasts import Values, contrasts, joint_p
from foveate.studies.comparison.factors.levels import Factor, FamilyRows, factors_of, level_weights
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.comparison.plan_analysis import ALPHA
from foveate.studies.comparison.statistics import Difference, difference_of, holm, p_text
from foveate.studies.reporting.terminal_table import terminal_table

__all__ = ["FactorAnalysis", "Level", "analyse_factors", "effects_table", "effects_text"]


def effects_text(measure: Measure = TOP1) -> str:
    """How to read effects of what plans were compared by."""
    return (
        f"The effect of a level is in points of {measure.name} against the mean of the factor's other levels, the "
        "other factors being equal, with its 95% interval. Numbers are tested for a trend over equal steps, two levels "
        "by their difference, more by an F test; p_Holm is corrected for the number of factors. That one factor's "
        "effect depends on another is not in these tests."
    )


@dataclass(frozen=True)
class Level:
    """One level of a factor.

    Args:
        name: its value as text.
        plans: how many plans have it.
        score: the mean score of these plans in percent, over all seeds: top-1, or what they were compared by.
        effect: in points, against the mean of the factor's other levels, the other factors being equal; None where
            these plans cannot tell it.
    """

    name: str
    plans: int
    score: float
    effect: Difference | None

    @property
    def top1(self) -> float:
        """The score, where it is top-1."""
        return self.score


@dataclass(frozen=True)
class FactorAnalysis:
    """One factor of a family.

    Args:
        family: its text.
        name: the factor's.
        levels: in order.
        test: "trend", "difference" or "F".
        trend: points for each step from one level to the next; of two levels, the second less the first; None for F.
        p: of no effect; None where there can be no test.
        p_holm: corrected for the number of factors.
        obstacle: why there is no test, or None.
        measure: what the plans were compared by.
    """

    family: str
    name: str
    levels: tuple[Level, ...]
    test: str
    trend: Difference | None
    p: float | None
    p_holm: float | None
    obstacle: str | None
    measure: Measure = TOP1

    @property
    def matters(self) -> bool | None:
        """Whether there is evidence that the factor matters; None without a test."""
        return None if self.p_holm is None else self.p_holm < ALPHA

    @property
    def text(self) -> str:
        """What the data allow one to say, with the numbers."""
        if self.p_holm is None:
            return f"{self.name}: no verdict: {self.obstacle}"
        p = p_text("p_Holm", self.p_holm)
        said = "it matters" if self.matters else "no evidence that it matters"
        if self.trend is not None:
            names = f"{self.levels[1].name} less {self.levels[0].name}"
            what = f"trend {self.trend} points a step" if self.test == "trend" else f"{names}: {self.trend} points"
            return f"{self.name}: {said}: {what}, {p}"
        best = max(self.levels, key=lambda level: level.effect.mean if level.effect else float("-inf"))
        return f"{self.name}: {said}: F test of {len(self.levels)} levels, {p}; highest: {best.name} {best.effect}"

    def as_dicts(self) -> list[JsonObject]:
        """A row for each level."""
        shared = {"family": self.family, "factor": self.name}
        tested = {"test": self.test, "p": self.p, "p_holm": self.p_holm, "text": self.text}
        return [
            {
                **shared,
                "level": level.name,
                "plans": level.plans,
                self.measure.key: level.score,
                "effect": level.effect and level.effect.mean,
                "effect_low": level.effect and level.effect.low,
                "effect_high": level.effect and level.effect.high,
                **tested,
            }
            for level in self.levels
        ]


def analyse_factors(
    families: Sequence[FamilyRows],
    correct: Mapping[str, Tensor],
    baseline: str,
    obstacle: str | None,
    measure: Measure = TOP1,
) -> tuple[FactorAnalysis, ...]:
    """Each factor of some families that were compared.

    Args:
        families: with the labels of their plans.
        correct: for the baseline and each plan (S, N), the baseline first: the measure's values of each image.
        baseline: its label.
        obstacle: why there can be no verdict on these seeds and images, or None.
        measure: what the plans were compared by.
    """
    labels = list(correct)
    right = np.stack([np.asarray(values) for values in correct.values()])
    found = []
    for rows in families:
        factors = factors_of(rows, baseline)
        for factor in factors:
            others = [other for other in factors if other is not factor]
            found.append(_analysed(rows.family, factor, others, labels, right, obstacle, measure))
    corrected = holm({str(k): one.p for k, one in enumerate(found) if one.p is not None})
    return tuple(replace(one, p_holm=corrected.get(str(k))) for k, one in enumerate(found))


def _analysed(
    family: str,
    factor: Factor,
    others: Sequence[Factor],
    labels: Sequence[str],
    right: Values,
    obstacle: str | None,
    measure: Measure,
) -> FactorAnalysis:
    count, images = len(factor.levels), right.shape[-1]
    weights = level_weights(factor, others, labels)
    if weights is None:
        obstacle = "these plans cannot tell it from the other factors"
    elif images <= count:
        obstacle = f"{images} images are too few for {count} levels"
    test = "trend" if factor.ordered and count > 2 else "difference" if count == 2 else "F"
    effects: list[Difference | None] = [None] * count
    trend = p = None
    if weights is not None:
        against = contrasts(right, weights * count / (count - 1), measure.added)
        effects = [difference_of(against, k) for k in range(count)]
    if weights is not None and obstacle is None:
        if test == "F":
            p = joint_p(right, weights[1:] - weights[:1], measure.added)
        else:
            steps = np.arange(count) - (count - 1) / 2
            line = (steps @ weights / np.square(steps).sum())[None]
            trend = difference_of(contrasts(right, line, measure.added), 0)
            p = trend.p
    levels = []
    for name, effect in zip(factor.levels, effects, strict=True):
        members = [labels.index(label) for label, level in factor.of.items() if level == name]
        levels.append(Level(name, len(members), 100 * float(right[members].mean()), effect))
    return FactorAnalysis(family, factor.name, tuple(levels), test, trend, p, None, obstacle, measure)


def effects_table(factors: Sequence[FactorAnalysis], console: Console | None = None) -> Table:
    """The levels with their effects, for a terminal; without one that is named, of 80 columns."""
    rows = [(factor, level) for factor in factors for level in factor.levels]
    column = factors[0].measure.column
    return terminal_table(
        [f"{factor.name}: {level.name}" for factor, level in rows],
        {
            "plans": [str(level.plans) for _, level in rows],
            column: [f"{level.score:.1f}" for _, level in rows],
            "effect [95%]": [str(level.effect or "") for _, level in rows],
        },
        title="What varies",
        heading="level",
        leave_out=("plans", column),
        ends=[n for n, (factor, level) in enumerate(rows) if level is factor.levels[-1]],
        console=console,
    )
