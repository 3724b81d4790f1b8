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

from foveate.errors import FoveateError, near
from foveate.studies.comparison.miou import paired_values
from foveate.studies.comparison.statistics import Difference, difference_of
from foveate.training.tasks.average_precision import Matches, average_precision, match_objects
from foveate.training.tasks.detection_metrics import DetectionEvaluation

__all__ = ["image_parts", "map_differences"]

_AT_ONCE = 64  # weight vectors


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
