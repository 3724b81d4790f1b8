"""Paired differences between two plans, with intervals that cover both seeds and test images.

For seed s and image i let d_si = 1, 0 or -1: whether the plan is right where the baseline is wrong, and so on. The mean
difference D has two independent sources of error: which seeds were drawn and which test images. Its variance is

    V = var_s(mean_i d_si) / S  +  var_i(mean_s d_si) / N

and the interval is D +- t(0.975, df) sqrt(V) with Welch and Satterthwaite's degrees of freedom: those of S - 1 and
N - 1, weighted by the two parts of V. V counts the part of the noise that belongs to neither seed nor image alone
twice: the interval is on the safe side. With one seed only the second part is known, and the result says so.

Beside it stand a bootstrap over seeds and images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993),
McNemar's test on the pooled predictions (Psychometrika 12, 1947) and Holm's correction (Scand. J. Statistics 6, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveate.studies.comparison.distributions import t_quantile, two_sided_p

__all__ = ["Difference", "McNemar", "accuracy", "bootstrap_interval", "holm", "mcnemar", "paired_difference"]


@dataclass(frozen=True)
class Difference:
    """A paired difference in accuracy, in percentage points.

    Args:
        mean: plan minus baseline.
        low: lower end of the 95% interval.
        high: upper end.
        seeds: number of seeds.
        p: two-sided, of no difference; below 0.05 exactly where the interval leaves 0 out.
    """

    mean: float
    low: float
    high: float
    seeds: int
    p: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class McNemar:
    """Pooled predictions on which two plans disagree.

    Args:
        better: how many only the plan has right.
        worse: how many only the baseline has right.
        p: of the exact test: that each disagreement is a fair coin's toss.
    """

    better: int
    worse: int
    p: float


def paired_difference(correct: Tensor, baseline: Tensor) -> Difference:
    """The difference in accuracy between two plans that share seeds and test images.

    Args:
        correct: (S, N) bool, whether the plan was right, for each seed and test image.
        baseline: (S, N) bool, the same for the baseline.
    """
    d = correct.double() - baseline.double()
    seeds, images = d.shape
    mean = d.mean().item()
    of_images = d.mean(0).var().item() / images if images > 1 else 0.0
    of_seeds = d.mean(1).var().item() / seeds if seeds > 1 else 0.0
    variance = of_images + of_seeds
    if variance == 0:
        return Difference(100 * mean, 100 * mean, 100 * mean, seeds, 0.0 if mean else 1.0)
    parts = of_images**2 / max(images - 1, 1) + of_seeds**2 / max(seeds - 1, 1)
    df = max(1.0, variance**2 / parts)
    half = t_quantile(0.975, df) * math.sqrt(variance)
    p = two_sided_p(mean / math.sqrt(variance), df)
    return Difference(100 * mean, 100 * (mean - half), 100 * (mean + half), seeds, p)


def bootstrap_interval(correct: Tensor, baseline: Tensor, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the difference when both seeds and images are drawn again, with replacement.

    The drawn images are the same for every drawn seed and for both plans. With few seeds this interval is too narrow
    (three seeds can only be drawn in ten ways); with one seed it speaks of the images alone.

    Args:
        correct: (S, N) bool, whether the plan was right, for each seed and test image.
        baseline: (S, N) bool, the same for the baseline.
        draws: how often.
        seed: of the draws.

    Returns:
        Lower and upper end in percentage points.
    """
    d = correct.numpy().astype(np.int8) - baseline.numpy().astype(np.int8)
    seeds, images = d.shape
    random = np.random.default_rng(seed)
    # Images with equal columns are alike: how often each kind is drawn is all that matters.
    kinds, counts = np.unique(d, axis=1, return_counts=True)
    drawn = random.multinomial(images, counts / images, size=draws)
    of_seeds = drawn @ kinds.T.astype(np.float64) / images
    weights = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    low, high = np.quantile((weights * of_seeds).sum(1), [0.025, 0.975])
    return 100 * float(low), 100 * float(high)


def mcnemar(correct: Tensor, baseline: Tensor) -> McNemar:
    """McNemar's exact test on the predictions of all seeds together.

    It takes every prediction as an observation of its own, and says nothing of other seeds: with several seeds, the
    same image counts several times, and p is too small where images differ in difficulty.

    Args:
        correct: (S, N) bool, whether the plan was right, for each seed and test image.
        baseline: (S, N) bool, the same for the baseline.
    """
    better, worse = int((correct & ~baseline).sum()), int((baseline & ~correct).sum())
    n, few = better + worse, min(better, worse)
    k = torch.arange(few + 1, dtype=torch.float64)
    log_ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    tail = float(torch.exp(log_ways - n * math.log(2)).sum())
    return McNemar(better, worse, min(1.0, 2 * tail))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p values: of 20 families, at most one has a value below 0.05 where there is no difference.

    Args:
        p_values: of a family of tests, by name.

    Returns:
        The adjusted values, by name, in the given order.
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def accuracy(correct: Tensor) -> list[float]:
    """Accuracy in percent for each seed; ``correct`` is (S, N) bool."""
    return [100 * value for value in torch.as_tensor(correct).double().mean(1).tolist()]
