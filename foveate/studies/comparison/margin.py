"""Whether a plan is worse than the baseline by more than a margin: not worse, equivalent, worse, or undecided.

Each claim has a one-sided test at 5% (Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987). "Not worse" and
"worse" are about the same border, -margin, and one of the two is true; "equivalent" claims more than "not worse". So
something false is said of a plan with a probability of at most 5%. Every p value is multiplied by the number of
plans (Bonferroni), so that something false is said of any plan in at most one comparison of twenty. Holm's correction
would not promise this here: of two opposite claims about a plan, one stays true when the other is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.errors import FoveateError
from foveate.studies.comparison.statistics import Paired, one_sided_p, p_text

__all__ = ["MarginTest", "check_margin", "margin_test", "points_text"]

_ALPHA = 0.05


@dataclass(frozen=True)
class MarginTest:
    """One plan's one-sided tests; each p value is multiplied by the number of plans.

    Args:
        margin: in points, more than 0.
        p_not_worse: that it is worse by less than the margin.
        p_equivalent: that the difference is less than the margin either way.
        p_worse: that it is worse by more than the margin.
    """

    margin: float
    p_not_worse: float
    p_equivalent: float
    p_worse: float

    @property
    def word(self) -> str:
        """The strongest claim: "equivalent", which is "not worse", too; "not worse"; "worse"; or "undecided"."""
        if self.p_equivalent < _ALPHA:
            return "equivalent"
        if self.p_not_worse < _ALPHA:
            return "not worse"
        return "worse" if self.p_worse < _ALPHA else "undecided"

    @property
    def text(self) -> str:
        """In words, with the p value."""
        points = points_text(self.margin)
        texts = {
            "equivalent": (f"equivalent within {points}", self.p_equivalent),
            "not worse": (f"not worse by more than {points}", self.p_not_worse),
            "worse": (f"worse by more than {points}", self.p_worse),
            "undecided": (f"undecided whether it is worse by more than {points}", self.p_not_worse),
        }
        text, p = texts[self.word]
        return f"{text} ({p_text('one-sided p', p)})"


def points_text(margin: float) -> str:
    """A margin as it is written: "1 point", "1.5 points"."""
    return f"{margin:g} point{'' if margin == 1 else 's'}"


def check_margin(margin: float | None) -> float | None:
    """The margin as a number, or None.

    Raises:
        FoveateError: it is not a number between 0 and 100, exclusive.
    """
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin < 100:
        raise FoveateError(f"margin={margin!r}: give points, more than 0, such as margin=1.0")
    return float(margin)


def margin_test(found: Paired, plan: int, margin: float) -> MarginTest:
    """Test one plan against the baseline.

    Args:
        found: of one comparison: its arrays are (K,).
        plan: which of the K.
        margin: in points.
    """
    least = margin / 100

    def corrected(p: float) -> float:
        return min(1.0, found.plans * p)

    above, below = one_sided_p(found, plan, -least), one_sided_p(found.negative, plan, -least)
    worse = one_sided_p(found.negative, plan, least)
    return MarginTest(margin, corrected(above), corrected(max(above, below)), corrected(worse))
