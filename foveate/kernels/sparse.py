"""Strided sparse attention: the pattern as a mask, and the same attention without the mask.

    local:    i sees j when 0 <= i - j < window                        (not causal: |i - j| < window)
    strided:  i sees j when (i - j) mod stride == 0 and j <= i         (not causal: any j)

The positions are cut into blocks, or into columns one stride apart; each block or column is one small dense
attention. With window = stride = sqrt(n), time and memory are O(n sqrt(n)). Where a block and its neighbours would hold
as many pairs as there are, or there are few positions, the local attention is one dense attention with a mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.kernels.dispatch import PLAIN, enabled, into_a_graph, is_transformed, no_active_modes

__all__ = ["local_attention", "local_pattern", "pattern_map", "strided_attention", "strided_pattern"]

FEW = 64
"""Positions up to which one dense attention with a mask takes less time than blocks: benchmarks/mechanisms.py."""

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
    """Softmax attention within each block, (B * blocks, heads, rows, d).

    Args:
        q: the queries.
        k: the keys.
        v: the values.
        seen: which pairs, 0 for what is seen and -inf for the rest; in a graph truth values.
        causal: a row sees those before it.
    """
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


# ---- masks: the same for each image, and small, so that they are kept ----

_KEPT = 1 << 18  # elements of a mask
Mask = Callable[[int, int, bool, torch.device], Tensor]


def _mask(make: Mask, n: int, size: int, causal: bool, like: Tensor) -> Tensor:
    """What ``make`` gives as numbers to add to scores, 0 and -inf."""
    small = n * size <= _KEPT
    if small and no_active_modes() and not is_transformed() and type(like) in PLAIN and not like.is_meta:
        return _kept_mask(make, n, size, causal, like.device, like.dtype)
    return _added(make(n, size, causal, like.device), like.dtype)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, float("-inf"))


@functools.lru_cache(maxsize=32)
def _kept_mask(make: Mask, n: int, size: int, causal: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(mode=False), torch.no_grad():  # it may be kept for a backward pass later
        return _added(make(n, size, causal, device), dtype)


def _around(n: int, size: int, causal: bool, device: torch.device, blocks: int | None = None) -> Tensor:
    """Which keys around its block each query sees, (blocks, 1, size, 2 or 3 times size) of truth values."""
    blocks = -(-n // size) if blocks is None else blocks
    block = torch.arange(blocks, device=device).reshape(blocks, 1, 1) * size
    query = block + torch.arange(size, device=device).reshape(1, size, 1)
    key = block + torch.arange(-size, size if causal else 2 * size, device=device).reshape(1, 1, -1)
    back = query - key
    return ((back < size) & (back >= 0 if causal else back > -size) & (key >= 0) & (key < n)).unsqueeze(1)


def _everywhere(n: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """``local_pattern``, (n, n) of truth values."""
    return local_pattern(n, window, causal).to(device)


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


def _in_blocks(rows: Tensor, rest: int, sizes: tuple[int, int]) -> Tensor:
    """(B, heads, n, d) -> (B, *sizes, heads, d): a view where nothing is filled in, however the heads lie."""
    return torch.unflatten(_fill(rows, rest).transpose(1, 2), 1, sizes)


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
        (B, heads, n, d), as a view of (B, n, heads, d).
    """
    n = q.shape[2]
    graph = into_a_graph()
    if not graph and enabled() and (n <= FEW or (2 if causal else 3) * window >= n):
        whole = window >= n  # everything, or everything before
        seen = None if whole else _mask(_everywhere, n, window, causal, q)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal and whole)
    size, blocks, rest = _cut(n, window, parts)

    def cut(rows: Tensor) -> Tensor:
        """(B * blocks, heads, size, d)."""
        return _in_blocks(rows, rest, (blocks, size)).flatten(0, 1).transpose(1, 2)

    def around(rows: Tensor) -> Tensor:
        """(B * blocks, heads, 2 or 3 times size, d): each block between its neighbours, zeros outside."""
        span = size * (2 if causal else 3)
        if not graph:  # views of the same rows
            padded = F.pad(rows.transpose(1, 2), (0, 0, 0, 0, size, rest + span - 2 * size))
            return padded.unfold(1, span, size).movedim(4, 2).flatten(0, 1).transpose(1, 2)
        own = _in_blocks(rows, rest, (blocks, size))
        before = F.pad(own, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        after = () if causal else (F.pad(own, (0, 0, 0, 0, 0, 0, 0, 1))[:, 1:],)
        return torch.cat([before, own, *after], dim=2).flatten(0, 1).transpose(1, 2)

    seen = _around(n, size, causal, q.device, blocks) if graph else _mask(_around, n, size, causal, q)
    each = seen.expand(q.shape[0], -1, -1, -1, -1).flatten(0, 1)
    out = torch.unflatten(_attention(cut(q), around(k), around(v), each).transpose(1, 2), 0, (-1, blocks))
    return out.flatten(1, 2)[:, :n].transpose(1, 2)


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
    n = q.shape[2]
    columns, rows, rest = _cut(n, stride, parts)

    def upright(x: Tensor) -> Tensor:
        """(B * columns, heads, rows, d)."""
        return _in_blocks(x, rest, (rows, columns)).transpose(1, 2).flatten(0, 1).transpose(1, 2)

    real = None
    if not (causal or _is_zero(rest)):  # causal: what was filled in comes last and is seen by nobody
        real = (torch.arange(rows * columns, device=q.device) < n).view(rows, columns).t().reshape(columns, 1, 1, rows)
        real = real.expand(q.shape[0], -1, -1, -1, -1).flatten(0, 1)
    out = torch.unflatten(_attention(upright(q), upright(k), upright(v), real, causal), 0, (-1, columns))
    return out.permute(0, 3, 1, 2, 4).flatten(1, 2)[:, :n].transpose(1, 2)
