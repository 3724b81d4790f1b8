"""How many seeds would show a difference: the power of the paired t test over seeds.

With S seeds whose differences to the baseline have the standard deviation sd, a true difference D gives a t statistic
that is noncentral t with S - 1 degrees of freedom and noncentrality sqrt(S) D / sd (Cohen, Statistical Power Analysis,
1988, chapter 2). All of it is about other seeds on the same test images: more seeds do not replace more images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from foveate.studies.comparison.distributions import noncentral_t_cdf, t_quantile

__all__ = ["MOST_SEEDS", "POWER", "Power", "power", "seeds_needed", "smallest_difference"]

POWER = 0.8
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Power:
    """What seeds can show.

    Args:
        spread: standard deviation of the differences of single seeds, in points.
        seeds_needed: to see the observed difference with 80% power; None: more than ``MOST_SEEDS``.
        smallest: the smallest difference, in points, that this many seeds see with 80% power.
        alpha: the two-sided level of the test.
    """

    spread: float
    seeds_needed: int | None
    smallest: float
    alpha: float


@lru_cache(maxsize=4096)
def _critical(seeds: int, alpha: float) -> float:
    return t_quantile(1 - alpha / 2, seeds - 1)


def power(seeds: int, difference: float, spread: float, alpha: float = 0.05) -> float:
    """How often the two-sided paired t test finds a difference.

    Args:
        seeds: at least 2.
        difference: the true one.
        spread: standard deviation of the differences of single seeds, in the same unit; more than 0.
        alpha: level of the test.
    """
    shift, limit = math.sqrt(seeds) * difference / spread, _critical(seeds, alpha)
    return 1 - noncentral_t_cdf(limit, seeds - 1, shift) + noncentral_t_cdf(-limit, seeds - 1, shift)


def seeds_needed(difference: float, spread: float, alpha: float = 0.05) -> int | None:
    """The fewest seeds that see a difference with 80% power; None: more than ``MOST_SEEDS``.

    Args:
        difference: to be seen.
        spread: standard deviation of the differences of single seeds, in the same unit.
        alpha: level of the test.
    """
    if difference == 0:
        return None
    if spread == 0:
        return 2
    low, high = 1, 2
    while power(high, difference, spread, alpha) < POWER:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(middle, difference, spread, alpha) < POWER else (low, middle)
    return high if high <= MOST_SEEDS else None


def smallest_difference(seeds: int, spread: float, alpha: float = 0.05) -> float:
    """The difference that this many seeds (at least 2) see with 80% power, in the unit of ``spread``."""
    if spread == 0:
        return 0.0
    low, high = 0.0, spread
    while power(seeds, high, spread, alpha) < POWER:
        low, high = high, 2 * high
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if power(seeds, middle, spread, alpha) < POWER else (low, middle)
    return high
