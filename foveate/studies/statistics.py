"""Paired differences between two plans, with an interval that covers both seeds and test images.

For seed s and image i let d_si = 1, 0 or -1: whether the plan is right where the baseline is wrong, and so on. The mean
difference D has two independent sources of error: which seeds were drawn and which test images. Its variance is

    V = var_s(mean_i d_si) / S  +  var_i(mean_s d_si) / N

and the interval is D +- t(0.975, df) sqrt(V) with Welch and Satterthwaite's degrees of freedom: those of S - 1 and
N - 1, weighted by the two parts of V. With one seed only the second part is known, and the result says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Difference", "paired_difference", "t_quantile"]


@dataclass(frozen=True)
class Difference:
    """A paired difference in accuracy, in percentage points.

    Args:
        mean: plan minus baseline.
        low: lower end of the 95% interval.
        high: upper end.
        seeds: number of seeds.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """In words: what the interval allows one to say."""
        if self.low > 0:
            words = "better than the baseline"
        elif self.high < 0:
            words = "worse than the baseline"
        else:
            words = "no evidence of a difference"
        return words if self.seeds > 1 else f"{words} (one seed: its luck is not in the interval)"

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def _t_cdf(t: float, df: float) -> float:
    """Student's t distribution, by Simpson's rule on its density after x = tan(u)."""
    steps = 400
    end = math.atan(t / math.sqrt(df))
    width = end / steps
    total = 0.0
    for k in range(steps + 1):
        weight = 1 if k in (0, steps) else 4 if k % 2 else 2
        total += weight * math.cos(k * width) ** (df - 1)
    area = total * width / 3
    norm = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    return 0.5 + norm * area


def t_quantile(probability: float, df: float) -> float:
    """The quantile of Student's t distribution.

    Args:
        probability: 0.5 to 1, exclusive.
        df: degrees of freedom, at least 1; they need not be whole.
    """
    low, high = 0.0, 1.0
    while _t_cdf(high, df) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < probability else (low, middle)
    return high


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
        return Difference(100 * mean, 100 * mean, 100 * mean, seeds)
    spread = of_images**2 / max(images - 1, 1) + of_seeds**2 / max(seeds - 1, 1)
    half = t_quantile(0.975, max(1.0, variance**2 / spread)) * math.sqrt(variance)
    return Difference(100 * mean, 100 * (mean - half), 100 * (mean + half), seeds)


def accuracy(correct: Tensor) -> list[float]:
    """Accuracy in percent for each seed; ``correct`` is (S, N) bool."""
    return [100 * value for value in torch.as_tensor(correct).double().mean(1).tolist()]
