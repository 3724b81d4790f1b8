"""What the runs of a comparison allow one to say of each plan, in numbers and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from foveate.studies.comparison.power import MOST_SEEDS, Power, seeds_needed, smallest_difference
from foveate.studies.comparison.statistics import (
    Difference,
    McNemar,
    accuracy,
    bootstrap_interval,
    holm,
    mcnemar,
    paired_difference,
)

__all__ = ["ALPHA", "Analysis", "analyse", "p_words"]

ALPHA = 0.05


@dataclass(frozen=True)
class Analysis:
    """One plan against the baseline, in points of top-1 accuracy.

    Args:
        difference: paired over seeds and images.
        per_seed: the difference with each seed.
        bootstrap: 95% interval of the bootstrap over seeds and images; with one seed, over images alone.
        mcnemar: on the predictions of all seeds together.
        p_holm: ``difference.p``, corrected for the number of plans.
        plans: how many plans that is.
        power: None with one seed, whose spread is unknown.
    """

    difference: Difference
    per_seed: tuple[float, ...]
    bootstrap: tuple[float, float]
    mcnemar: McNemar
    p_holm: float
    plans: int
    power: Power | None

    @property
    def sign(self) -> int:
        """1: better than the baseline; -1: worse; 0: no evidence of a difference."""
        if self.p_holm >= ALPHA:
            return 0
        return 1 if self.difference.mean > 0 else -1

    @property
    def word(self) -> str:
        """The verdict without numbers."""
        return {1: "better", -1: "worse", 0: "no evidence of a difference"}[self.sign]

    @property
    def verdict(self) -> str:
        """In words and numbers: what the data allow one to say."""
        d, p = self.difference, p_words("p_Holm", self.p_holm)
        if self.sign:
            low, high = sorted((self.sign * d.low, self.sign * d.high))
            words = f"{self.word} by {abs(d.mean):.1f} points [{low:.1f}, {high:.1f}], {p}"
        else:
            corrected = f" after Holm's correction for {self.plans} plans" if d.p < ALPHA else ""
            words = f"{self.word}{corrected}: {d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}], {p}"
        return words if d.seeds > 1 else f"{words} (one seed: its luck is not in the interval)"

    @property
    def outlook(self) -> str:
        """In words: what this many seeds and more seeds would show."""
        if self.power is None:
            return "one seed: how much seeds differ, and so how many are needed, is unknown"
        if self.power.spread == 0:
            return "all seeds give the same difference, so there is nothing to say of more seeds"
        seen = f"{self.difference.seeds} seeds see {self.power.smallest:.1f} points or more with 80% power"
        if self.difference.mean == 0:
            return seen
        needed = self.power.seeds_needed
        many = f"more than {MOST_SEEDS:,}" if needed is None else f"{needed:,}"
        return f"{seen}; {many} would be needed to see {abs(self.difference.mean):.1f} points"


def p_words(name: str, p: float) -> str:
    """A p value as it is printed: two digits, and never 0."""
    return f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.3f}" if p < 0.1 else f"{name} = {p:.2f}"


def analyse(correct: Mapping[str, Tensor], baseline: str) -> dict[str, Analysis]:
    """Compare every plan with the baseline.

    Args:
        correct: for each label (S, N) bool, whether each test image was right with each seed.
        baseline: its label.

    Returns:
        For each other label what can be said. The level of the power is 0.05 divided by the number of plans, which is
        the strictest step of Holm's correction.
    """
    base = correct[baseline]
    others = {label: right for label, right in correct.items() if label != baseline}
    differences = {label: paired_difference(right, base) for label, right in others.items()}
    adjusted = holm({label: difference.p for label, difference in differences.items()})
    found = {}
    for label, right in others.items():
        per_seed = tuple(a - b for a, b in zip(accuracy(right), accuracy(base), strict=True))
        found[label] = Analysis(
            differences[label],
            per_seed,
            bootstrap_interval(right, base),
            mcnemar(right, base),
            adjusted[label],
            len(others),
            _power(right, base, differences[label].mean, ALPHA / len(others)),
        )
    return found


def _power(right: Tensor, base: Tensor, difference: float, alpha: float) -> Power | None:
    if len(right) < 2:
        return None
    # From whole numbers, so that equal differences have a spread of exactly 0.
    wins = (right.sum(1) - base.sum(1)).double()
    spread = 100 * wins.std().item() / right.shape[1]
    return Power(spread, seeds_needed(difference, spread, alpha), smallest_difference(len(right), spread, alpha), alpha)
