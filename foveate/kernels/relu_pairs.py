"""Sums of ReLUs over all pairs, without the pairs.

    y_i = sum_j relu(a_i + b_j) v_j
        = a_i * sum_{b_j > -a_i} v_j  +  sum_{b_j > -a_i} b_j v_j

With the b in descending order the j that count for one i come first, so both sums are entries of running sums.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["relu_pairs", "relu_pairs_plain"]


def relu_pairs_plain(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """The definition: n * s pairs in memory.

    Args:
        a: (B, n).
        b: (B, s).
        v: (B, s, d).

    Returns:
        (B, n, d).
    """
    return (a.unsqueeze(2) + b.unsqueeze(1)).relu() @ v


def relu_pairs(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """The same sums in O((n + s) d) memory and O(s log s + (n + s) d) time.

    Args:
        a: (B, n).
        b: (B, s).
        v: (B, s, d).

    Returns:
        (B, n, d), in the type of v; the running sums are taken in float32 at least.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    a, b, values = a.to(wide), b.to(wide), v.to(wide)
    b, order = b.sort(dim=1, descending=True)
    values = values.gather(1, order.unsqueeze(2).expand_as(values))
    sums = torch.cat([values, b.unsqueeze(2) * values], dim=2).cumsum(dim=1)
    sums = F.pad(sums, (0, 0, 1, 0))  # entry c is the sum of the first c
    count = torch.searchsorted(-b.detach(), a.detach().contiguous())
    plain, weighted = sums.gather(1, count.unsqueeze(2).expand(-1, -1, sums.shape[2])).chunk(2, dim=2)
    return (a.unsqueeze(2) * plain + weighted).to(v.dtype)
