"""Softmax attention between the rows of two matrices, with and without the matrix of all pairs.

    out_i = sum_j softmax_j(scale <q_i, k_j>) v_j

The rows are positions of an image, or its channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.kernels.dispatch import into_a_graph, is_transformed

__all__ = ["channels_last", "flatten_positions", "softmax_attention", "softmax_map"]


def channels_last(x: Tensor) -> Tensor:
    """x with its channels last, so that ``flatten_positions`` of its 1x1 convolutions is a view.

    In a graph, and inside torch.func's transforms, x itself: vmap knows one memory format.

    Args:
        x: (B, C, h, w).
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or into_a_graph() or is_transformed():
        return x
    return x.contiguous(memory_format=torch.channels_last)


def flatten_positions(x: Tensor) -> Tensor:
    """A feature map as one row for each position, in raster order.

    Args:
        x: (B, C, h, w).

    Returns:
        (B, h*w, C), contiguous: a view when x is channels_last.
    """
    return x.flatten(2).transpose(1, 2).contiguous()


def softmax_map(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The plain definition: every pair at once.

    Args:
        q: (B, n, d).
        k: (B, s, d).
        scale: of the inner products.

    Returns:
        (B, n, s); each row sums to 1.
    """
    wide = torch.promote_types(q.dtype, torch.float32)  # a sum over thousands of positions leaves float16's range
    return (scale * (q.to(wide) @ k.to(wide).transpose(1, 2))).softmax(dim=2).to(q.dtype)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``softmax_map(q, k, scale) @ v`` without the map: memory grows with n + s and not with n * s.

    Args:
        q: (B, n, d), the last axis contiguous.
        k: (B, s, d), likewise.
        v: (B, s, e), likewise.
        scale: of the inner products.

    Returns:
        (B, n, e).
    """
    width = v.shape[2]
    if q.device.type == "cpu":
        # PyTorch's fused CPU kernel wants rows of one width; without it the pairs are built. Zeros change nothing.
        most = max(q.shape[2], width)
        q, k, v = (F.pad(rows, (0, most - rows.shape[2])) if rows.shape[2] < most else rows for rows in (q, k, v))
    out = F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), scale=scale)
    out = out.squeeze(1)
    return out[..., :width] if out.shape[2] > width else out  # a slice of all is an operation that Core ML lacks
