"""Paired differences between plans and a baseline, with intervals that cover both seeds and test images.

Every plan was run with the same S seeds and tested on the same N images: a crossed design. For one plan, seed s and
image i let d_si = 1, 0 or -1: whether the plan is right where the baseline is wrong, and so on. With independent parts
for seeds, for images and for what belongs to neither alone, the variance of the mean difference D is

    V = A / S + B / N,    A = var(seeds) + var(rest) / N,    B = var(images)

* A is the variance of the differences of single seeds. Its estimate has few degrees of freedom, so it is pooled over
  all K plans and the baseline: the interaction of the plans x seeds analysis of variance of the accuracies, with
  K (S - 1) degrees of freedom (Fisher, The Design of Experiments, 1935). A plan whose own differences vary more than
  that is judged by its own. A row that is equal to another one, the same network under two names, adds nothing to what
  is known of A, and counts once.
* B is the variance between images of their mean differences, less var(rest) / S, which A has already. It is each
  plan's own, with N - 1 degrees of freedom. Two more images are counted, one on which only the plan is right and one
  on which only the baseline is (Agresti and Min, Statistics in Medicine 24, 2005): 2 / N is added. Without a
  single difference the interval is therefore about 3 / N, as by the rule of three.

The interval is D +- sqrt(t_A^2 A / S + t_B^2 B / N), where each t is Student's quantile for the degrees of freedom of
its own part. Where A and B are estimated independently, it covers the truth at least as often as it says, however few
the seeds (Banerjee, Sankhya 22, 1960; the reason: the distribution function of a squared normal variable is concave).
The degrees of freedom of Welch and Satterthwaite promise this only for many seeds. A is at least var(rest) / N.

Beside it stand a bootstrap over seeds and images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993),
McNemar's test on the pooled predictions (Psychometrika 12, 1947) and Holm's correction (Scand. J. Statistics 6, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.studies.comparison.distributions import t_quantile

__all__ = [
    *("Difference", "McNemar", "Paired", "accuracy", "bootstrap_interval", "difference_of", "different_rows"),
    *("half_width", "holm", "mcnemar", "mean_square", "one_sided_p", "p_text", "paired", "paired_difference"),
]

Array = npt.NDArray[np.float64]
_LEAST_P = 1e-100


@dataclass(frozen=True)
class Difference:
    """A paired difference in accuracy, mIoU or mAP, in percentage points.

    Args:
        mean: plan minus baseline.
        low: lower end of the 95% interval.
        high: upper end.
        seeds: number of seeds; with one, the interval is over images alone.
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


@dataclass(frozen=True)
class Paired:
    """Differences of K plans to a baseline and the parts of their variances, as fractions; arrays (..., K).

    Args:
        mean: D.
        single: variance of the differences of single seeds, A; 0 with one seed, with which it is unknown.
        rest: the part of ``single`` that belongs to neither seed nor image alone, var(rest) / N.
        image: variance of D from the drawing of images, B / N.
        plans: K.
        seeds: S.
        images: N.
        pooled: how many plans share the estimate of A: K, but for rows that are equal to another row.
        added: how many images are counted beside the real ones in ``image``.
    """

    mean: Array
    single: Array
    rest: Array
    image: Array
    plans: int
    seeds: int
    images: int
    pooled: int
    added: int = 2

    @property
    def negative(self) -> Paired:
        """The differences of the baseline to the plans."""
        return replace(self, mean=-self.mean)


def paired(correct: npt.ArrayLike) -> Paired:
    """The differences of plans to the baseline, and what their variances consist of.

    Args:
        correct: (..., 1 + K, S, N) bool, whether the baseline, then each plan was right, for each seed and test image.
    """
    right = np.asarray(correct, dtype=bool)
    rows, seeds, images = right.shape[-3:]
    d = right[..., 1:, :, :].view(np.int8) - right[..., :1, :, :].view(np.int8)
    different = different_rows(right)
    of_runs = right.mean(-1)
    of_seeds = of_runs[..., 1:, :] - of_runs[..., :1, :]
    mean = of_seeds.mean(-1)
    # Sums of squares of the two-way table seeds x images, the last by subtraction.
    of_images = d.sum(-2, dtype=np.int32) / seeds
    squares_images = seeds * np.square(of_images - mean[..., None]).sum(-1)
    squares_seeds = images * np.square(of_seeds - mean[..., None]).sum(-1)
    squares = np.count_nonzero(d, axis=(-2, -1)) - seeds * images * np.square(mean)
    freedom = max((seeds - 1) * (images - 1), 1)
    rest = np.maximum(squares - squares_images - squares_seeds, 0) / freedom
    between = squares_images / seeds / max(images - 1, 1)
    image = (np.maximum(between - rest / seeds, 0) + 2 / images) / images
    single = np.zeros_like(mean)
    if seeds > 1:
        single = np.maximum(2 * mean_square(of_runs[..., different, :])[..., None], of_seeds.var(-1, ddof=1))
    return Paired(mean, single, rest / images, image, rows - 1, seeds, images, max(len(different) - 1, 1))


def different_rows(values: npt.NDArray[Any]) -> list[int]:
    """The rows of (..., R, S, N) that are not equal to an earlier one, by number; of several tables, in any of them."""
    found: list[int] = []
    for row in range(values.shape[-3]):
        same = [(values[..., row, :, :] == values[..., one, :, :]).all() for one in found]
        if not any(same):
            found.append(row)
    return found


def mean_square(of_runs: Array) -> Array:
    """The mean square of the interaction of rows and seeds, from (..., R, S) means of runs; 0 of a single row."""
    rows, seeds = of_runs.shape[-2:]
    table = of_runs - of_runs.mean(-1, keepdims=True) - of_runs.mean(-2, keepdims=True)
    table += of_runs.mean((-2, -1), keepdims=True)
    return np.asarray(np.square(table).sum((-2, -1)) / (max(rows - 1, 1) * (seeds - 1)))


def half_width(found: Paired, alpha: float) -> Array:
    """Half of the intervals that leave the truth out with the probability ``alpha`` at most; arrays (..., K)."""
    of_images = t_quantile(alpha / 2, max(found.images - 1, 1))
    seeds = of_images**2 * found.rest / found.seeds
    if found.seeds > 1:
        of_seeds = t_quantile(alpha / 2, found.pooled * (found.seeds - 1))
        seeds = np.maximum(of_seeds**2 * found.single / found.seeds, seeds)
    return np.asarray(np.sqrt(seeds + of_images**2 * found.image))


def one_sided_p(found: Paired, plan: int, least: float = 0.0) -> float:
    """The p value of the claim that a plan's true difference is more than ``least``.

    It is the probability with which the interval that just touches ``least`` leaves out a truth below it; at least
    1e-100.

    Args:
        found: of one comparison: its arrays are (K,).
        plan: which of the K.
        least: a difference in accuracy, as a fraction.
    """
    distance = float(found.mean[plan]) - least
    tail = _tail(found, plan, abs(distance))
    return tail if distance > 0 else 1 - tail


def _tail(found: Paired, plan: int, distance: float) -> float:
    """Half the alpha whose interval has half the width ``distance``; at most 0.5."""
    mean, single, rest, image = (np.asarray(part[plan]) for part in (found.mean, found.single, found.rest, found.image))
    one = replace(found, mean=mean, single=single, rest=rest, image=image)
    low, high = math.log(_LEAST_P), math.log(0.5)
    for _ in range(60):
        middle = (low + high) / 2
        inside = float(half_width(one, 2 * math.exp(middle))) < distance
        low, high = (low, middle) if inside else (middle, high)
    return math.exp(high)


def paired_difference(correct: Tensor, baseline: Tensor) -> Difference:
    """The difference in accuracy between two plans that share seeds and test images.

    Args:
        correct: (S, N) bool, whether the plan was right, for each seed and test image.
        baseline: (S, N) bool, the same for the baseline.
    """
    return difference_of(paired(np.stack([baseline, correct])), 0)


def difference_of(found: Paired, plan: int) -> Difference:
    """One plan's difference with its own interval, not corrected for the number of plans.

    Args:
        found: of one comparison: its arrays are (K,).
        plan: which of the K.
    """
    mean, half = float(found.mean[plan]), float(half_width(found, 0.05)[plan])
    p = min(1.0, 2 * _tail(found, plan, abs(mean)))
    # No difference between two shares is beyond 100 points.
    low, high = max(mean - half, -1.0), min(mean + half, 1.0)
    return Difference(100 * mean, 100 * low, 100 * high, found.seeds, p)


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


def p_text(name: str, p: float) -> str:
    """A p value as it is printed: two digits, and never 0."""
    return f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.3f}" if p < 0.1 else f"{name} = {p:.2f}"


def accuracy(correct: Tensor) -> list[float]:
    """Accuracy in percent for each seed; ``correct`` is (S, N) bool."""
    return [100 * value for value in torch.as_tensor(correct).double().mean(1).tolist()]
