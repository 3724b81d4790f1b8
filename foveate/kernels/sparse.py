"""Strided sparse attention: the pattern as a mask, and the same attention without the mask.

    local:    i sees j when 0 <= i - j < window                        (not causal: |i - j| < window)
    strided:  i sees j when (i - j) mod stride == 0 and j <= i         (not causal: any j)

The positions are cut into blocks, or into columns one stride apart; each block or column is one small dense
attention. With window = stride = sqrt(n), time and memory are O(n sqrt(n)).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.kernels.dispatch import into_a_graph

__all__ = ["local_attention", "local_pattern", "pattern_map", "strided_attention", "strided_pattern"]

_FAR = 3e4  # below what is seen: e to the -30000 is 0, and float16 still holds it


def local_pattern(n: int, window: int, causal: bool) -> Tensor:
    """The definition: which j each i of n sees among the last ``window`` positions, (n, n) of truth values."""
    back = torch.arange(n)[:, None] - torch.arange(n)
    return (back < window) & (back >= 0 if causal else back > -window)


def strided_pattern(n: int, stride: int, causal: bool) -> Tensor:
    """The definition: which j each i of n sees at a distance that ``stride`` divides, (n, n) of truth values."""
    back = torch.arange(n)[:, None] - torch.arange(n)
    return (back % stride == 0) & (back >= (0 if causal else -n))


def pattern_map(q: Tensor, k: Tensor, pattern: Tensor) -> Tensor:
    """The plain definition: softmax of q k^T / sqrt(d) over the pairs of a pattern.

    Args:
        q: (B, heads, n, d).
        k: (B, heads, n, d).
        pattern: (n, n) of truth values; each row has one that is true.

    Returns:
        (B, heads, n, n); each row sums to 1.
    """
    scores: Tensor = (q / q.shape[3] ** 0.5) @ k.transpose(2, 3)
    return scores.masked_fill(~pattern.to(q.device), float("-inf")).softmax(dim=3)


def _attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool = False) -> Tensor:
    """Softmax attention within each block, (B * heads, blocks, rows, d); ``seen``: which pairs, or ``causal``."""
    if not into_a_graph():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    # Converters know products of matrices better. A block's pairs are as many as a row's, and not those of all rows.
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    if causal:
        order = torch.arange(q.shape[2], device=q.device)
        seen = order.reshape(1, 1, 1, -1) <= order.reshape(1, 1, -1, 1)
    if seen is not None:
        scores = scores + (seen.to(scores.dtype) - 1) * _FAR
    out: Tensor = scores.softmax(dim=3) @ v
    return out


def _cut(n: int, length: int, parts: int | None) -> tuple[int, int, int]:
    """How n positions are cut: length of a part, how many parts, positions that are filled in.

    With ``parts`` known nothing is asked about the numbers, so they may be the symbols of an exported graph.
    """
    if parts is not None:
        return length, parts, 0
    length = min(length, n)
    parts = -(-n // length)
    return length, parts, parts * length - n


def _fill(rows: Tensor, rest: int) -> Tensor:
    """(B, heads, n, d) -> (B, heads, n + rest, d), with zeros behind."""
    return rows if _is_zero(rest) else F.pad(rows, (0, 0, 0, rest))


def _is_zero(number: int) -> bool:
    """Whether a number is 0; a symbol is not asked, for the graph would then hold for one answer only."""
    return type(number) is int and number == 0


def local_attention(q: Tensor, k: Tensor, v: Tensor, window: int, causal: bool, parts: int | None = None) -> Tensor:
    """``pattern_map(q, k, local_pattern(...)) @ v`` in O(n window) time and memory.

    A block of ``window`` queries meets its own block of keys and the one before (not causal: and the one after).

    Args:
        q: (B, heads, n, d).
        k: likewise.
        v: likewise.
        window: positions seen on one side, the own one included.
        causal: only what comes before.
        parts: n / window, where that is known to be a whole number.

    Returns:
        (B, heads, n, d).
    """
    heads, n = q.shape[1:3]
    size, blocks, rest = _cut(n, window, parts)

    def cut(rows: Tensor) -> Tensor:
        """(B * heads, blocks, size, d)."""
        return torch.unflatten(_fill(rows, rest), 2, (blocks, size)).flatten(0, 1)

    def around(rows: Tensor) -> Tensor:
        """(B * heads, blocks, 2 or 3 times size, d): each block between its neighbours, zeros outside."""
        span = size * (2 if causal else 3)
        if not into_a_graph():  # views of the same rows
            padded = F.pad(rows, (0, 0, size, rest + span - 2 * size))
            return padded.unfold(2, span, size).transpose(3, 4).flatten(0, 1)
        own = cut(rows)
        before = F.pad(own, (0, 0, 0, 0, 1, 0))[:, :-1]
        return torch.cat([before, own] if causal else [before, own, F.pad(own, (0, 0, 0, 0, 0, 1))[:, 1:]], dim=2)

    block = torch.arange(blocks, device=q.device).reshape(blocks, 1, 1) * size
    query = block + torch.arange(size, device=q.device).reshape(1, size, 1)
    key = block + torch.arange(-size, size if causal else 2 * size, device=q.device).reshape(1, 1, -1)
    back = query - key
    seen = (back < size) & (back >= 0 if causal else back > -size) & (key >= 0) & (key < n)
    out = _attention(cut(q), around(k), around(v), seen[None])
    return torch.unflatten(out, 0, (-1, heads)).flatten(2, 3)[:, :, :n]


def strided_attention(q: Tensor, k: Tensor, v: Tensor, stride: int, causal: bool, parts: int | None = None) -> Tensor:
    """``pattern_map(q, k, strided_pattern(...)) @ v`` in O(n^2 / stride) time and O(n) memory.

    The positions are written in rows of ``stride``; each column is one attention.

    Args:
        q: (B, heads, n, d).
        k: likewise.
        v: likewise.
        stride: distance of the positions that see each other.
        causal: only what comes before.
        parts: n / stride, where that is known to be a whole number.

    Returns:
        (B, heads, n, d).
    """
    heads, n = q.shape[1:3]
    columns, rows, rest = _cut(n, stride, parts)

    def upright(x: Tensor) -> Tensor:
        """(B * heads, columns, rows, d)."""
        return torch.unflatten(_fill(x, rest), 2, (rows, columns)).transpose(2, 3).flatten(0, 1)

    real = None
    if not (causal or _is_zero(rest)):  # causal: what was filled in comes last and is seen by nobody
        real = (torch.arange(rows * columns, device=q.device) < n).view(1, rows, columns).transpose(1, 2).unsqueeze(2)
    out = _attention(upright(q), upright(k), upright(v), real, causal)
    return torch.unflatten(out.transpose(1, 2).flatten(1, 2)[:, :n], 0, (-1, heads))
