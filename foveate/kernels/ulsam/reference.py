"""Subspace re-weighting: the part of ULSAM after the scores.

A_n = softmax over h, w of scores_n        out_n = F_n + A_n * F_n        n = 1 .. g
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.kernels.dispatch import into_a_graph, is_eager

__all__ = ["reweight", "spatial_softmax"]


def spatial_softmax(scores: Tensor) -> Tensor:
    """Softmax over the spatial positions of each map.

    Args:
        scores: (B, g, h, w), floating point.

    Returns:
        (B, g, h, w); each (h, w) map is non-negative and sums to 1.
    """
    return scores.flatten(2).softmax(dim=2).reshape(scores.shape)


def reweight(x: Tensor, attention: Tensor) -> Tensor:
    """x + A * x, one attention map for each group of channels.

    Args:
        x: (B, C, h, w).
        attention: (B, g, h, w), where g divides C.

    Returns:
        (B, C, h, w), in the memory format of x.
    """
    split = torch.unflatten(x, 1, (attention.shape[1], -1))  # a view in either memory format
    weights = attention.unsqueeze(2)
    if not torch._jit_internal.is_scripting():
        graph = into_a_graph()
        if graph:  # converters know product and sum
            return (split + split * weights).flatten(1, 2)
    out = torch.addcmul(split, split, weights).flatten(1, 2)  # one pass over memory
    if not torch._jit_internal.is_scripting():
        out = _with_stride_of_many(out)
    return out


def _with_stride_of_many(out: Tensor) -> Tensor:
    """One image with the stride between images that several have, which says nothing about one.

    With another one torch's batch norm gives wrong gradients in evaluation mode.

    Args:
        out: (B, C, h, w), without gaps in memory.
    """
    if type(out) is not Tensor or not is_eager() or out.shape[0] != 1 or out.stride(0) == out.numel():
        return out
    return out.as_strided(out.shape, (out.numel(), *out.stride()[1:]))
