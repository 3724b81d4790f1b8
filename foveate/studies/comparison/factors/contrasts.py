"""Contrasts of several plans: weighted sums of their accuracies, with the variance that ``statistics`` has for two.

For weights w_r of the plans, d_si = sum_r w_r c_rsi takes the place of the difference of two plans (w: 1 and -1).
The variance between seeds is again pooled over all plans of the comparison, |w|^2 MS with the mean square MS of the
interaction of plans and seeds, which has K (S - 1) degrees of freedom, or the contrast's own where that is larger. A
row that is equal to another one is not counted in it. Two images are counted beside the real ones for a difference, so
|w|^2 for a contrast.

Whether several contrasts are all 0 is tested together (Scheffé, The Analysis of Variance, 1959): with orthonormal
weights, the hypothesis is left where

    m' (q_A A / S + q_B B / N)^-1 m > 1,    q_A = Q F(Q, K (S - 1)),    q_B = Q (N - 1) / (N - Q) F(Q, N - Q)

with the Q contrasts m, A their variance between seeds and B the (Q, Q) covariance between images. q_B is Hotelling's
(Annals of Mathematical Statistics 2, 1931). A single contrast is tested as a difference is.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from foveate.studies.comparison.distributions import f_quantile
from foveate.studies.comparison.statistics import Paired, different_rows, mean_square

__all__ = ["Values", "contrasts", "joint_p", "joint_parts", "rejects"]

Array = npt.NDArray[np.float64]
Values = npt.NDArray[np.bool_] | Array
_LEAST_P = 1e-12


def contrasts(correct: npt.ArrayLike, weights: npt.ArrayLike, added: int = 2) -> Paired:
    """Contrasts and what their variances consist of, for ``half_width`` and ``difference_of``.

    Args:
        correct: (1 + K, S, N), whether the baseline and each plan was right, for each seed and test image; or what each
            image adds to a score, of which this is the mean.
        weights: (Q, 1 + K), each row with the sum 0.
        added: how many images are counted beside the real ones for a difference of two plans.
    """
    right, w = np.asarray(correct), np.asarray(weights, dtype=np.float64)
    rows, seeds, images = right.shape
    parts = [_parts(right, row) for row in w]
    mean, own, rest, between = (np.array(values) for values in zip(*parts, strict=True))
    size = np.square(w).sum(-1)
    image = (np.maximum(between - rest / seeds, 0) + size * added / 2 / images) / images
    different = different_rows(right)
    single = np.zeros_like(mean)
    if seeds > 1:
        single = np.maximum(size * mean_square(right[different].mean(-1)), own)
    return Paired(mean, single, rest / images, image, rows - 1, seeds, images, max(len(different) - 1, 1), added)


def _parts(right: Values, weights: Array) -> tuple[float, float, float, float]:
    """Of one contrast: its mean, the variances between seeds, of the rest and between images."""
    d = _values(right, weights)
    seeds, images = d.shape
    of_seeds, of_images, mean = d.mean(1), d.mean(0), d.mean()
    rest = d - of_seeds[:, None] - of_images[None, :] + mean
    return (
        float(mean),
        float(of_seeds.var(ddof=1)) if seeds > 1 else 0.0,
        float(np.square(rest).sum() / max((seeds - 1) * (images - 1), 1)),
        float(np.square(of_images - mean).sum() / max(images - 1, 1)),
    )


def _values(right: Values, weights: Array) -> Array:
    used = np.flatnonzero(weights)
    return np.asarray(np.tensordot(weights[used], right[used].astype(np.float64), 1))


def joint_p(correct: npt.ArrayLike, weights: npt.ArrayLike, added: int = 2) -> float:
    """The p value of the hypothesis that some contrasts are all 0; at least 1e-12.

    Args:
        correct: as in ``contrasts``, with at least two seeds and more images than contrasts.
        weights: (Q, 1 + K), each row with the sum 0, none a combination of the others.
        added: as in ``contrasts``.
    """
    parts = joint_parts(correct, weights, added)
    low, high = math.log(_LEAST_P), 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if rejects(parts, math.exp(middle)) else (middle, high)
    return math.exp(high)


Joint = tuple[Array, float, Array, int, int]  # squared means, A / S, eigenvalues of B / N, degrees of freedom, images


def rejects(parts: Joint, alpha: float) -> bool:
    """Whether the hypothesis is left at this level; ``parts`` are those of ``joint_parts``."""
    squares, seed, images, freedom, count = parts
    q = len(squares)
    of_seeds = q * f_quantile(alpha, q, freedom)
    of_images = q * (count - 1) / (count - q) * f_quantile(alpha, q, count - q)
    return float((squares / (of_seeds * seed + of_images * images)).sum()) > 1


def joint_parts(correct: npt.ArrayLike, weights: npt.ArrayLike, added: int = 2) -> Joint:
    """What ``rejects`` decides by; the arguments are those of ``joint_p``."""
    right, w = np.asarray(correct), np.asarray(weights, dtype=np.float64)
    _, seeds, images = right.shape
    different = different_rows(right)
    w = np.linalg.qr(w.T)[0].T  # orthonormal contrasts of the same hypothesis
    d = np.stack([_values(right, row) for row in w])  # (Q, S, N)
    of_seeds, of_images, mean = d.mean(2), d.mean(1), d.mean((1, 2))
    rest = d - of_seeds[:, :, None] - of_images[:, None, :] + mean[:, None, None]
    rest_covariance = np.einsum("psn,qsn->pq", rest, rest) / ((seeds - 1) * (images - 1))
    centred = of_images - mean[:, None]
    covariance = centred @ centred.T / (images - 1) - rest_covariance / seeds
    values, vectors = np.linalg.eigh(covariance)
    own = float(of_seeds.var(1, ddof=1).mean())
    single = max(float(mean_square(right[different].mean(-1))), own, float(np.trace(rest_covariance)) / len(w) / images)
    image = (np.maximum(values, 0) + added / 2 / images) / images
    return np.square(vectors.T @ mean), single / seeds, image, max(len(different) - 1, 1) * (seeds - 1), images
