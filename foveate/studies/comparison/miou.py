"""Differences in mIoU between segmentation networks, with intervals that cover both seeds and test images.

The mIoU of a run is no mean over images: each class's intersection R_c and union U_c are summed over all images first.
To first order, an image's weight changes it by (infinitesimal jackknife; Efron, The Jackknife, the Bootstrap and Other
Resampling Plans, 1982)

    v_i = mIoU + N mean_c (r_ic - IoU_c u_ic) / U_c

whose mean over the N images is the mIoU itself. So v stands where 1 or 0 stands for a right or wrong image in
``statistics``: the same analysis of variance over seeds and images, pooled over the plans, and the same intervals. Its
variance is that of resampled images, to first order; ``benchmarks/miou_intervals.py`` counts how often the intervals
hold the truth.

With one seed nothing but the images is in the interval, and on few images the first order is too little: rare classes
are in few of them. There the delete-one jackknife takes its place, the mIoU without each image in turn:

    v_i = mIoU + (N - 1) (mean_j mIoU_(-j) - mIoU_(-i))
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from foveate.errors import FoveateError, near
from foveate.studies.comparison.statistics import Difference, Paired, difference_of, different_rows, mean_square

__all__ = ["image_values", "jackknife_values", "miou_differences", "paired_values", "seed_values"]


def image_values(counts: Tensor) -> Tensor:
    """What each image adds to a run's mIoU, (..., N) float64; the mean over the images is the mIoU.

    Args:
        counts: (..., N, K, 3), right, predicted and actual pixels of each image and class, as
            ``SegmentationEvaluation.counts``. Classes that are neither present nor predicted are left out.
    """
    right, predicted, actual = counts.double().unbind(-1)
    union = predicted + actual - right
    total = union.sum(-2, keepdim=True)
    there = total > 0
    whole = total.clamp(min=1e-300)
    iou = torch.where(there, right.sum(-2, keepdim=True) / whole, 0.0)
    count = there.sum(-1).clamp(min=1)
    parts = torch.where(there, (right - iou * union) / whole, 0.0).sum(-1) / count
    return iou.sum(-1) / count + counts.shape[-3] * parts


def jackknife_values(counts: Tensor) -> Tensor:
    """The same from the mIoU without each image in turn, (..., N) float64; with a single image as ``image_values``.

    Args:
        counts: (..., N, K, 3), as there.
    """
    images = counts.shape[-3]
    if images < 2:
        return image_values(counts)
    exact = counts.double()
    total = exact.sum(-3, keepdim=True)
    without = _miou(total - exact)
    return _miou(total) + (images - 1) * (without.mean(-1, keepdim=True) - without)


def _miou(total: Tensor) -> Tensor:
    """(...) of counts (..., K, 3); the mean over the classes that are there, and 0 of none."""
    right, predicted, actual = total.unbind(-1)
    union = predicted + actual - right
    there = union > 0
    return torch.where(there, right / union.clamp(min=1e-300), 0.0).sum(-1) / there.sum(-1).clamp(min=1)


def seed_values(counts: Tensor) -> Tensor:
    """What each image adds to each seed's mIoU, (..., S, N) from (..., S, N, K, 3): with one seed by the jackknife."""
    return image_values(counts) if counts.shape[-4] > 1 else jackknife_values(counts)


def paired_values(values: Tensor) -> Paired:
    """The differences of plans to the baseline, and what their variances consist of; see ``statistics.paired``.

    Args:
        values: (1 + K, S, N) float64 of the baseline, then of each plan, for each seed and test image.
    """
    all_values = values.numpy()
    rows, seeds, images = all_values.shape
    d = all_values[1:] - all_values[:1]
    different = different_rows(all_values)
    of_runs = all_values.mean(-1)
    of_seeds = d.mean(-1)
    mean = of_seeds.mean(-1)
    of_images = d.mean(-2)
    residue = d - of_images[:, None, :] - of_seeds[..., None] + mean[:, None, None]
    rest = np.square(residue).sum((-2, -1)) / max((seeds - 1) * (images - 1), 1)
    between = np.square(of_images - mean[:, None]).sum(-1) / max(images - 1, 1)
    image = np.maximum(between - rest / seeds, 0) / images
    single = np.zeros_like(mean)
    if seeds > 1:
        single = np.maximum(2 * mean_square(of_runs[different]), of_seeds.var(-1, ddof=1))
    return Paired(mean, single, rest / images, image, rows - 1, seeds, images, max(len(different) - 1, 1), added=0)


def miou_differences(counts: Mapping[str, Tensor], baseline: str = "none") -> dict[str, Difference]:
    """Each plan's difference in mIoU to a baseline, in points, with a 95% interval over seeds and test images.

    Args:
        counts: for each plan and the baseline (S, N, K, 3): ``SegmentationEvaluation.counts`` of S seeds on the same
            images in the same order.
        baseline: its name.

    Returns:
        By plan; p is not corrected for their number: see ``statistics.holm``.

    Raises:
        FoveateError: the baseline is missing, there is no plan beside it, or shapes differ.
    """
    if baseline not in counts:
        raise FoveateError(f"baseline={baseline!r}: there are no counts of that name; {near(baseline, counts)}")
    shapes = {tuple(each.shape) for each in counts.values()}
    if len(shapes) != 1 or len(counts) < 2 or any(len(shape) != 4 or shape[-1] != 3 for shape in shapes):
        found = ", ".join(f"{label!r} {tuple(each.shape)}" for label, each in counts.items())
        raise FoveateError(f"counts need one shape (seeds, images, classes, 3) for two names or more: {found}")
    labels = [label for label in counts if label != baseline]
    found_pairs = paired_values(torch.stack([seed_values(counts[label]) for label in (baseline, *labels)]))
    return {label: difference_of(found_pairs, plan) for plan, label in enumerate(labels)}
