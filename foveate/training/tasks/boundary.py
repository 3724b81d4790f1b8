"""Boundary IoU: how well the contours of classes are met, which the IoU of large regions hardly shows.

Cheng, Girshick, Dollár, Berg, Kirillov: Boundary IoU, CVPR 2021, https://arxiv.org/abs/2103.16562. For the pixels G
that are a class and P that are predicted as it

    Boundary IoU = |(G_d and G) and (P_d and P)| / |(G_d and G) or (P_d and P)|

where X_d are the pixels within d of the contour of X, d = 2% of the image's diagonal, rounded, at least 1. As in the
authors' program the distance is the larger of that in rows and that in columns (d erosions by 3x3), and the edge of the
image is a contour, too. Here it is counted for each class over all images, as mIoU is. Pixels that are ignored belong
to no class, neither in G nor in P.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.data.segmentation import IGNORE

__all__ = ["boundary_counts", "boundary_pixels", "boundary_width"]

_SHARE = 0.02  # of the diagonal


def boundary_width(height: int, width: int) -> int:
    """d in pixels for an image."""
    return max(1, round(_SHARE * math.hypot(height, width)))


def boundary_pixels(masks: Tensor, distance: int) -> Tensor:
    """(N, H, W) bool, the pixels of masks within a distance of their contours.

    A pixel is deeper inside than d if the window of 2 d + 1 pixels around it lies in the mask; how many of a window do
    is a difference of sums from the corner on, whatever d is.

    Args:
        masks: (N, H, W) bool.
        distance: d, at least 1.
    """
    side = 2 * distance + 1
    left, right = distance + 1, distance  # and a row and a column of zeros, for the sums before the first
    sums = F.pad(masks.int(), (left, right, left, right)).cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    inside = sums[:, side:, side:] - sums[:, :-side, side:] - sums[:, side:, :-side] + sums[:, :-side, :-side]
    return masks & (inside < side * side)


def boundary_counts(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """(K, 3) int64 of one image: pixels at the boundary of each class in both, in the prediction, and in the truth.

    Args:
        predicted: (H, W) classes.
        target: (H, W) classes, or ``IGNORE``.
        classes: K.
    """
    counted = target != IGNORE
    distance = boundary_width(*target.shape)
    found = torch.zeros(classes, 3, dtype=torch.int64)
    present = torch.cat([predicted[counted], target[counted]]).bincount(minlength=classes)
    for label in present.nonzero()[:, 0].tolist():
        own = boundary_pixels(torch.stack([(predicted == label) & counted, target == label]), distance)
        found[label] = torch.stack([own.all(0).sum(), *own.sum((1, 2))]).cpu()
    return found
