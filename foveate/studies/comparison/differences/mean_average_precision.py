"""Differences in mAP between detectors, with intervals that cover both seeds and test images.

The mAP of a run is no mean over images: boxes of all images are put into one order first. What an image adds to it is
seen by leaving it out (jackknife; Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982): with N images

    v_i = mAP + (N - 1) (mean_j mAP_without_j - mAP_without_i)

whose mean is the mAP itself, and whose variance is that of resampled images to first order. So v stands where 1 or 0
stands for a right or wrong image in ``statistics``: the same analysis of variance over seeds and images, pooled over
the plans, and the same intervals. ``benchmarks/map_intervals.py`` counts how often the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from foveate.data.detection.split import Objects
from foveate.errors import FoveateError, near
from foveate.studies.comparison.miou import paired_values
from foveate.studies.comparison.statistics import Difference, difference_of
from foveate.training.tasks.average_precision import THRESHOLDS, Matches, average_precision, match_objects
from foveate.training.tasks.collected_objects import MOST
from foveate.training.tasks.detection_metrics import DetectionEvaluation

__all__ = ["image_parts", "map_differences", "packed", "resampled_map", "unpacked"]

_AT_ONCE = 64  # weight vectors
_BITS = 2 ** torch.arange(len(THRESHOLDS))


def packed(found: Sequence[Tensor], objects: Sequence[Objects], classes: int) -> tuple[Tensor, Tensor]:
    """What a run found in N images of K classes, and what is there, as tensors of equal shapes for all runs.

    Args:
        found: of each image (n, 6), as ``DetectionEvaluation.found``.
        objects: of each image.
        classes: K.

    Returns:
        (N, 100, 8) float32: left, top, right, bottom, score, class; and as bits, one for each threshold of intersection
        over union, whether the box has an object, and whether that counts. Rows without a box have the class -1. And
        (N, K) int64, the objects of each class that are not ignored.
    """
    matches = match_objects(found, objects, classes)
    rows = torch.zeros(len(found), MOST, 8)
    rows[..., 5] = -1
    bits = [(of.long() * _BITS).sum(1).float() for of in (matches.right, matches.counted)]
    start = 0
    for image, of in enumerate(found):
        # In the order of ``match_objects``: by class, the highest score first.
        order = of[of[:, 4].argsort(descending=True, stable=True)]
        order = order[order[:, 5].argsort(stable=True)]
        part = slice(start, start + len(of))
        rows[image, : len(of)] = torch.cat([order, *(one[part, None] for one in bits)], 1)
        start += len(of)
    return rows, matches.present


def unpacked(rows: Tensor, present: Tensor) -> Matches:
    """The matches of a run from what :func:`packed` gave.

    Args:
        rows: (N, 100, 8).
        present: (N, K).
    """
    image, place = (rows[..., 5] >= 0).nonzero(as_tuple=True)
    own = rows[image, place]
    right, counted = (own[:, at, None].long() & _BITS > 0 for at in (6, 7))
    return Matches(image, own[:, 5].long(), own[:, 4], right, counted, present)


def resampled_map(matches: Matches, times: Tensor) -> Tensor:
    """(draws,) float64, the mAP with each image as often as ``times`` (draws, N) says; NaN of no object counts as 0."""
    parts = [average_precision(matches, some).nanmean(1) for some in torch.split(times, _AT_ONCE)]
    return torch.cat(parts).nan_to_num(nan=0.0)


def image_parts(matches: Matches) -> Tensor:
    """What each image adds to a run's mAP, (N,) float64; the mean over the images is the mAP.

    Args:
        matches: of the run.
    """
    count = len(matches.present)
    whole = float(average_precision(matches, torch.ones(1, count)).nanmean())
    if count < 2:
        return torch.full((count,), whole, dtype=torch.float64)
    parts = [
        average_precision(matches, 1.0 - torch.eye(count, dtype=torch.float64)[at : at + _AT_ONCE]).nanmean(1)
        for at in range(0, count, _AT_ONCE)
    ]
    without = torch.cat(parts).nan_to_num(nan=whole)  # the only image with objects: nothing is known without it
    return whole + (count - 1) * (without.mean() - without)


def map_differences(
    evaluations: Mapping[str, Sequence[DetectionEvaluation]], baseline: str = "none"
) -> dict[str, Difference]:
    """Each plan's difference in mAP to a baseline, in points, with a 95% interval over seeds and test images.

    Args:
        evaluations: for each plan and the baseline one for each seed, on the same images in the same order.
        baseline: its name.

    Returns:
        By plan; p is not corrected for their number: see ``statistics.holm``.

    Raises:
        FoveateError: the baseline is missing, there is no plan beside it, or the numbers of seeds, the images or their
            objects differ.
    """
    if baseline not in evaluations:
        raise FoveateError(f"baseline={baseline!r}: there is no evaluation of that name; {near(baseline, evaluations)}")
    if len(evaluations) < 2 or len({len(of) for of in evaluations.values()}) != 1 or not evaluations[baseline]:
        found = ", ".join(f"{label!r} {len(of)}" for label, of in evaluations.items())
        raise FoveateError(f"evaluations need the same number of seeds, at least 1, for two names or more: {found}")
    first = evaluations[baseline][0]
    for label, of in evaluations.items():
        for one in of:
            if not _same_objects(one, first):
                raise FoveateError(f"the evaluations of {label!r} and {baseline!r} are of different images or objects")
    labels = [label for label in evaluations if label != baseline]
    values = [
        torch.stack([image_parts(match_objects(one.found, one.objects, len(one.ap))) for one in evaluations[label]])
        for label in (baseline, *labels)
    ]
    pairs = paired_values(torch.stack(values))
    return {label: difference_of(pairs, plan) for plan, label in enumerate(labels)}


def _same_objects(one: DetectionEvaluation, other: DetectionEvaluation) -> bool:
    return len(one.objects) == len(other.objects) and all(
        len(a) == len(b) and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.labels, b.labels)
        for a, b in zip(one.objects, other.objects, strict=True)
    )
