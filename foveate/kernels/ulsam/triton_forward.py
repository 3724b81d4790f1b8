"""ULSAM on CUDA, the forward passes: kernels that triton_launch.py launches. The formulas are those of cpu.c.

Channel c of an image at position p = row * w + column stands at ``c * by_channel + p * by_position``; one of the steps
is 1. Tiles are (channels, positions). Everything is computed in float32.
"""

# Triton has no types, and the letters are those of the formulas.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-any-unimported
# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["fold", "infer", "moments", "reweight", "scores", "start_of", "vector_of"]


@triton.jit
def start_of(number, g, C, G, hw, by_channel):
    """Where the group begins in memory; ``number`` counts the groups of all images."""
    return (number // g).to(tl.int64) * C * hw + (number % g) * G * by_channel


@triton.jit
def vector_of(folded, which, number, c, C, G, g):
    """One of the vectors scale, shift, point for the channels c of a group, as a column; 0 behind the last."""
    at = folded + which * C + (number % g) * G + c
    return tl.load(at, mask=c < G, other=0.0)[:, None]


# ---- forward ----


@triton.jit
def _signed(x, p, by_position, mask, sign):
    return tl.load(x + (p * by_position)[None, :], mask=mask, other=0.0).to(tl.float32) * sign


@triton.jit
def _score(
    x, folded, number, p, C, G, g, h, w, hw, by_channel, by_position, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr
):
    """Scores of the positions p of one group; x points to the group.

    Behind the edge a window takes the edge once more, which changes no maximum. The maximum is taken of x, or of -x
    where scale is negative. Maxima drop NaN: the middle of the window, where it is kept, is enough for the softmax.
    """
    row, column = p // w, p % w
    up, here, down = tl.maximum(row - 1, 0) * w, row * w, tl.minimum(row + 1, h - 1) * w
    left, right = tl.maximum(column - 1, 0), tl.minimum(column + 1, w - 1)
    total = tl.zeros([POSITIONS], tl.float32)
    for first in range(0, G, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        scale = vector_of(folded, 0, number, c, C, G, g)
        shift = vector_of(folded, 1, number, c, C, G, g)
        point = vector_of(folded, 2, number, c, C, G, g)
        sign = tl.where(scale < 0, -1.0, 1.0)
        at = x + (c * by_channel)[:, None]
        mask = (c < G)[:, None] & (p < hw)[None, :]
        middle = tl.load(at + ((here + column) * by_position)[None, :], mask=mask, other=0.0).to(tl.float32)
        most = middle * sign
        most = tl.maximum(most, _signed(at, up + left, by_position, mask, sign))
        most = tl.maximum(most, _signed(at, up + column, by_position, mask, sign))
        most = tl.maximum(most, _signed(at, up + right, by_position, mask, sign))
        most = tl.maximum(most, _signed(at, here + left, by_position, mask, sign))
        most = tl.maximum(most, _signed(at, here + right, by_position, mask, sign))
        most = tl.maximum(most, _signed(at, down + left, by_position, mask, sign))
        most = tl.maximum(most, _signed(at, down + column, by_position, mask, sign))
        most = tl.maximum(most, _signed(at, down + right, by_position, mask, sign))
        z = most * (scale * sign) + shift
        z_middle = middle * scale + shift
        z = tl.where(z_middle == z_middle, z, z_middle)
        total += tl.sum(point * tl.where(z <= 0, 0.0, z), axis=0)
    return total + tl.load(folded + 3 * C + number % g)


@triton.jit
def scores(
    x, folded, score, C, G, g, h, w, hw,
    LAST: tl.constexpr, EVEN: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Grid: groups of all images, tiles of positions."""
    hw = hw // EVEN * EVEN  # the same number: the compiler sees what divides it
    by_channel = 1 if LAST else hw
    by_position = C if LAST else 1
    number = tl.program_id(0)
    p = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    x += start_of(number, g, C, G, hw, by_channel)
    total = _score(x, folded, number, p, C, G, g, h, w, hw, by_channel, by_position, CHANNELS, POSITIONS)
    tl.store(score + number.to(tl.int64) * hw + p, total, mask=p < hw)


@triton.jit
def _weigh(x, out, share, p, G, hw, by_channel, by_position, CHANNELS: tl.constexpr):
    """out = x + A x at the positions p of one group."""
    for first in range(0, G, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        at = (c * by_channel)[:, None] + (p * by_position)[None, :]
        mask = (c < G)[:, None] & (p < hw)[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at, value + share[None, :] * value, mask=mask)


@triton.jit
def reweight(
    x, attention, out, C, G, g, h, w, hw,
    LAST: tl.constexpr, EVEN: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Grid: groups of all images, tiles of positions."""
    hw = hw // EVEN * EVEN  # the same number: the compiler sees what divides it
    by_channel = 1 if LAST else hw
    by_position = C if LAST else 1
    number = tl.program_id(0)
    p = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    start = start_of(number, g, C, G, hw, by_channel)
    share = tl.load(attention + number.to(tl.int64) * hw + p, mask=p < hw, other=0.0)
    _weigh(x + start, out + start, share, p, G, hw, by_channel, by_position, CHANNELS)


@triton.jit
def infer(
    x, folded, score, out, C, G, g, h, w, hw,
    LAST: tl.constexpr, EVEN: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Grid: groups of all images. Everything for one group, while it is in the cache."""
    hw = hw // EVEN * EVEN  # the same number: the compiler sees what divides it
    by_channel = 1 if LAST else hw
    by_position = C if LAST else 1
    number = tl.program_id(0)
    start = start_of(number, g, C, G, hw, by_channel)
    x += start
    score += number.to(tl.int64) * hw
    most = tl.zeros([POSITIONS], tl.float32)  # what a ReLU gives is not less
    total = tl.zeros([POSITIONS], tl.float32)
    for first in range(0, hw, POSITIONS):
        p = first + tl.arange(0, POSITIONS)
        s = _score(x, folded, number, p, C, G, g, h, w, hw, by_channel, by_position, CHANNELS, POSITIONS)
        s = tl.where(s <= 0, 0.0, s)
        tl.store(score + p, s, mask=p < hw)
        s = tl.where(p < hw, s, -float("inf"))
        higher = tl.maximum(most, s)
        total = total * tl.exp(most - higher) + tl.exp(s - higher)
        most = higher
    peak = tl.max(most, axis=0)
    total_of_all = tl.sum(total * tl.exp(most - peak), axis=0)
    tl.debug_barrier()  # other threads read the scores that this one wrote
    for first in range(0, hw, POSITIONS):
        p = first + tl.arange(0, POSITIONS)
        share = tl.exp(tl.load(score + p, mask=p < hw, other=0.0) - peak) / total_of_all
        _weigh(x, out + start, share, p, G, hw, by_channel, by_position, CHANNELS)


@triton.jit
def moments(
    x, found, B, C, hw, parts,
    LAST: tl.constexpr, EVEN: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Of x less its first value: count, mean, sum of squares around the mean, (parts, 3, C).

    Grid: tiles of channels, parts of the positions. Each tile has its own mean; two are joined as by Chan, Golub and
    LeVeque: a small variance keeps its digits.
    """
    hw = hw // EVEN * EVEN  # the same number: the compiler sees what divides it
    by_channel = 1 if LAST else hw
    by_position = C if LAST else 1
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(1)
    tiles = tl.cdiv(hw, POSITIONS)
    origin = tl.load(x + c * by_channel, mask=c < C, other=0.0).to(tl.float32)[:, None]
    count = tl.zeros([CHANNELS], tl.float32)
    mean = tl.zeros([CHANNELS], tl.float32)
    square = tl.zeros([CHANNELS], tl.float32)
    for tile in range(part, B * tiles, parts):
        image = tl.zeros([POSITIONS], tl.int64) + tile // tiles
        p = (tile % tiles) * POSITIONS + tl.arange(0, POSITIONS)
        mask = (c < C)[:, None] & (p < hw)[None, :]
        at = (c * by_channel)[:, None] + (image * C * hw + p * by_position)[None, :]
        value = tl.where(mask, tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - origin, 0.0)
        n = tl.sum((p < hw).to(tl.float32), axis=0)
        here = tl.sum(value, axis=1) / n
        away = tl.where(mask, value - here[:, None], 0.0)
        step = here - mean
        both = count + n
        mean += step * (n / both)
        square += tl.sum(away * away, axis=1) + step * step * (count * n / both)
        count = both
    found += part * 3 * C + c
    tl.store(found, count, mask=c < C)
    tl.store(found + C, mean, mask=c < C)
    tl.store(found + 2 * C, square, mask=c < C)


# ---- both batch norms folded ----


@triton.jit
def fold(
    weight, bias, norm_weight, norm_bias, mean, var, point, point_bias, point_norm_weight, point_norm_bias, point_mean,
    point_var, folded, C, G, g, eps, point_eps, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of channels. folded: scale (C), shift (C), point (C), bias (g)."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mask, n = c < C, c // G
    factor = tl.load(norm_weight + c, mask=mask) / tl.sqrt(tl.load(var + c, mask=mask, other=1.0) + eps)
    shift = (tl.load(bias + c, mask=mask) - tl.load(mean + c, mask=mask)) * factor + tl.load(norm_bias + c, mask=mask)
    tl.store(folded + c, tl.load(weight + c, mask=mask) * factor, mask=mask)
    tl.store(folded + C + c, shift, mask=mask)
    factor = tl.load(point_norm_weight + n, mask=mask)
    factor = factor / tl.sqrt(tl.load(point_var + n, mask=mask, other=1.0) + point_eps)
    tl.store(folded + 2 * C + c, tl.load(point + c, mask=mask) * factor, mask=mask)
    shift = (tl.load(point_bias + n, mask=mask) - tl.load(point_mean + n, mask=mask)) * factor
    tl.store(folded + 3 * C + n, shift + tl.load(point_norm_bias + n, mask=mask), mask=mask & (c % G == 0))
