"""The gates on CUDA: the kernels that triton_launch.py launches.

An image is a matrix of kept items k (K of them) and reduced items r (R): channels and positions, or the reverse.
An element stands at ``k * by_kept + r * by_reduced``; one of the two steps is 1. Everything is computed in float32.
"""

# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-any-unimported
# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["gate", "join", "pool"]


@triton.jit
def _larger(a, b):
    """The larger of two; NaN if one of them is."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def pool(
    x, scores, found, K, R, by_kept, by_reduced, parts,
    MOST: tl.constexpr, MEAN: tl.constexpr, BACKWARDS: tl.constexpr, KEPT: tl.constexpr, REDUCED: tl.constexpr,
):  # fmt: skip
    """Maximum and mean over r of sigmoid(scores_r) x, or of x without scores: (B, MOST + MEAN, parts, K).

    Grid: images, tiles of k, parts of r, the parts fastest. A part has its own maximum, and its share of the mean.
    """
    number = tl.program_id(0)
    if BACKWARDS:
        number = tl.num_programs(0) - 1 - number
    part = number % parts
    tiles = tl.cdiv(K, KEPT)
    k = (number // parts % tiles) * KEPT + tl.arange(0, KEPT)
    image = (number // parts // tiles).to(tl.int64)
    x += image * K * R + (k.to(tl.int64) * by_kept)[:, None]
    length = tl.cdiv(tl.cdiv(R, REDUCED), parts) * REDUCED
    most = tl.full([KEPT, REDUCED], -float("inf"), tl.float32)
    total = tl.zeros([KEPT, REDUCED], tl.float32)
    for first in range(part * length, tl.minimum(R, part * length + length), REDUCED):
        r = first + tl.arange(0, REDUCED)
        mask = (k < K)[:, None] & (r < R)[None, :]
        value = tl.load(x + (r.to(tl.int64) * by_reduced)[None, :], mask=mask, other=0.0).to(tl.float32)
        if scores is not None:
            score = tl.load(scores + image * R + r, mask=r < R, other=0.0).to(tl.float32)
            value *= tl.sigmoid(score)[None, :]
        if MOST:
            most = _larger(tl.where(mask, value, -float("inf")), most)
        if MEAN:
            total += value
    at = found + (image * (MOST + MEAN) * parts + part) * K + k
    if MOST:
        tl.store(at, tl.reduce(most, 1, _larger), mask=k < K)
    if MEAN:
        tl.store(at + MOST * parts * K, tl.sum(total, axis=1) / R, mask=k < K)


@triton.jit
def join(found, out, K, parts, MOST: tl.constexpr, MEAN: tl.constexpr, KEPT: tl.constexpr):
    """The parts of ``pool``, (B, MOST + MEAN, parts, K), as one: (B, MOST + MEAN, K).

    Grid: images and what is kept of them, tiles of k.
    """
    tiles = tl.cdiv(K, KEPT)
    k = (tl.program_id(0) % tiles) * KEPT + tl.arange(0, KEPT)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    most = tl.full([KEPT], -float("inf"), tl.float32)
    total = tl.zeros([KEPT], tl.float32)
    for part in range(parts):
        value = tl.load(found + (row * parts + part) * K + k, mask=k < K, other=0.0)
        most = _larger(value, most)
        total += value
    if MOST:
        total = tl.where(row % (MOST + MEAN) == 0, most, total)
    tl.store(out + row * K + k, total, mask=k < K)


@triton.jit
def gate(
    x, channel_scores, position_scores, out, C, hw, by_channel, by_position,
    BACKWARDS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """sigmoid(channel scores) sigmoid(position scores) x; scores that are None count as 1.

    Grid: images, tiles of channels, tiles of positions, the positions fastest.
    """
    number = tl.program_id(0)
    if BACKWARDS:
        number = tl.num_programs(0) - 1 - number
    across, along = tl.cdiv(C, CHANNELS), tl.cdiv(hw, POSITIONS)
    p = (number % along) * POSITIONS + tl.arange(0, POSITIONS)
    c = (number // along % across) * CHANNELS + tl.arange(0, CHANNELS)
    image = (number // along // across).to(tl.int64)
    at = image * C * hw + (c.to(tl.int64) * by_channel)[:, None] + (p.to(tl.int64) * by_position)[None, :]
    mask = (c < C)[:, None] & (p < hw)[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if channel_scores is not None:
        score = tl.load(channel_scores + image * C + c, mask=c < C, other=0.0).to(tl.float32)
        value *= tl.sigmoid(score)[:, None]
    if position_scores is not None:
        score = tl.load(position_scores + image * hw + p, mask=p < hw, other=0.0).to(tl.float32)
        value *= tl.sigmoid(score)[None, :]
    tl.store(out + at, value, mask=mask)
