"""How many seeds or validation images would show a difference: the power of the verdict's own test.

The test is that of ``statistics``: a verdict needs |D| > sqrt(t_A^2 A / S + t_B^2 B / N). For a true difference D is
normal around it with the variance A / S + B / N, and the estimate of A is drawn as the test makes it: the larger one of
a chi-squared mean over all plans and the plan's own. The mean over fixed draws of that estimate is the power. A and B
themselves are those that the comparison found, A divided by the median of such draws: so from few seeds, too, it is as
often too large as too small. All of this is as uncertain as they are: it is for planning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from foveate.studies.comparison.distributions import t_quantile
from foveate.studies.comparison.statistics import Paired

__all__ = ["MOST_IMAGES", "MOST_SEEDS", "POWER", "Power", "Variance", "plan_power", "power", "variance_of"]

POWER = 0.8
MOST_SEEDS, MOST_IMAGES = 1_000, 10_000_000
_DRAWS = 20_000


@dataclass(frozen=True)
class Variance:
    """What a plan's difference varies by, in points squared, and how it was tested.

    Args:
        seed: variance of the true differences of single seeds, were there no end of images.
        rest: variance of what belongs to neither seed nor image alone, for one seed and one image.
        image: variance of the true differences on single images, were there no end of seeds.
        plans: how many share the estimate of ``seed``.
        alpha: two-sided level of the test.
        added: how many images the test counts beside the real ones.
    """

    seed: float
    rest: float
    image: float
    plans: int
    alpha: float
    added: int = 2


@dataclass(frozen=True)
class Power:
    """What the verdict would see, for a plan that varies as this one does.

    Args:
        smallest: the smallest difference, in points, that these seeds and images show with 80% power.
        seeds_needed: to see a difference as large as the one found with 80% power on these images; None: more than
            ``MOST_SEEDS``, or no number of seeds would do.
        images_needed: the same with these seeds; None: more than ``MOST_IMAGES``, or no number would do.
        alpha: two-sided level of the test: 0.05 divided by the number of plans, Holm's strictest step.
    """

    smallest: float
    seeds_needed: int | None
    images_needed: int | None
    alpha: float


def power(difference: float, variance: Variance, seeds: int, images: int) -> float:
    """How often the verdict finds a difference, of either sign.

    Args:
        difference: the true one, in points.
        variance: of the plan's difference.
        seeds: at least 2.
        images: at least 2.
    """
    single, rest = variance.seed + variance.rest / images, variance.rest / images
    image = variance.image / images + 1e4 * variance.added / images**2  # the images that the test adds
    of_images = t_quantile(variance.alpha / 2, images - 1)
    of_seeds = t_quantile(variance.alpha / 2, variance.plans * (seeds - 1))
    estimates = np.maximum(of_seeds**2 * single * _estimates(seeds, variance.plans), of_images**2 * rest)
    half = np.sqrt(estimates / seeds + of_images**2 * image)
    deviation = np.sqrt(single / seeds + image)
    return float((_normal((difference - half) / deviation) + _normal((-difference - half) / deviation)).mean())


def variance_of(found: Paired, plan: int, alpha: float) -> Variance:
    """What one plan's difference varies by, as the comparison found it.

    Args:
        found: of one comparison with at least two seeds: its arrays are (K,).
        plan: which of the K.
        alpha: two-sided level of the test.
    """
    single, rest, image = (1e4 * float(values[plan]) for values in (found.single, found.rest, found.image))
    single /= float(np.median(_estimates(found.seeds, found.pooled)))
    n = found.images
    drawn = max(image * n - 1e4 * found.added / n, 0)
    return Variance(max(single - rest, 0), rest * n, drawn, found.pooled, alpha, found.added)


def plan_power(difference: float, variance: Variance, seeds: int, images: int) -> Power:
    """What these seeds and images show, and what would be needed to see a difference.

    Args:
        difference: the one found, in points.
        variance: of the plan's difference.
        seeds: at least 2.
        images: at least 2.
    """
    smallest = _smallest(lambda points: power(points, variance, seeds, images))
    if difference == 0:
        return Power(smallest, None, None, variance.alpha)
    more_seeds = _fewest(lambda count: power(difference, variance, count, images), MOST_SEEDS)
    more_images = _fewest(lambda count: power(difference, variance, seeds, count), MOST_IMAGES)
    return Power(smallest, more_seeds, more_images, variance.alpha)


@lru_cache(maxsize=64)
def _estimates(seeds: int, plans: int) -> npt.NDArray[np.float64]:
    """Draws of the estimate of A, in units of A."""
    generator = np.random.default_rng(seeds * 1_000 + plans)
    own = generator.chisquare(seeds - 1, _DRAWS)
    others = generator.chisquare((plans - 1) * (seeds - 1), _DRAWS) if plans > 1 else 0.0
    return np.asarray(np.maximum((own + others) / (plans * (seeds - 1)), own / (seeds - 1)))


def _normal(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(torch.special.ndtr(torch.from_numpy(values)).numpy())


def _smallest(power_of: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    while power_of(high) < POWER:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if power_of(middle) < POWER else (low, middle)
    return high


def _fewest(power_of: Callable[[int], float], most: int) -> int | None:
    """The smallest count, from 2, with enough power; None where ``most`` has not."""
    low, high = 1, 2
    while power_of(high) < POWER:
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power_of(middle) < POWER else (low, middle)
    return high
