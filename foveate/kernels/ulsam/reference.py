"""Subspace re-weighting: the part of ULSAM after the scores.

A_n = softmax over h, w of scores_n        out_n = F_n + A_n * F_n        n = 1 .. g
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["reweight", "spatial_softmax"]


def spatial_softmax(scores: Tensor) -> Tensor:
    """Softmax over the places of each map.

    Args:
        scores: (B, g, h, w), floating point.

    Returns:
        (B, g, h, w); each (h, w) map is non-negative and sums to 1.
    """
    return scores.flatten(2).softmax(dim=2).view_as(scores)


def reweight(x: Tensor, attention: Tensor) -> Tensor:
    """x + A * x, one attention map for each group of channels.

    Args:
        x: (B, C, h, w).
        attention: (B, g, h, w), where g divides C.

    Returns:
        (B, C, h, w), in the memory format of x.
    """
    groups = attention.shape[1]
    split = x.unflatten(1, (groups, -1))  # a view in either memory format
    # One pass over memory instead of a product and a sum.
    return torch.addcmul(split, split, attention.unsqueeze(2)).flatten(1, 2)
