"""ULSAM on CUDA, the backward passes; see triton_forward.py.

dA = sum over a group of dy x        dx = dy + A dy + scale dz        (then add_affine, for the statistics of a batch)

dz is the gradient of what enters the first ReLU. Outside the image stands 0, which is never the maximum that counts.
"""

# Triton has no types, and the letters are those of the formulas.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-any-unimported
# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from foveate.kernels.ulsam.triton_forward import start_of, vector_of

__all__ = ["add_affine", "gradients", "map_gradient"]


@triton.jit
def map_gradient(
    x, dy, dmap, C, G, g, h, w, hw,
    LAST: tl.constexpr, EVEN: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Grid: groups of all images, tiles of positions."""
    hw = hw // EVEN * EVEN  # the same number: the compiler sees what divides it
    by_channel = 1 if LAST else hw
    by_position = C if LAST else 1
    number = tl.program_id(0)
    p = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    start = start_of(number, g, C, G, hw, by_channel)
    total = tl.zeros([POSITIONS], tl.float32)
    for first in range(0, G, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        at = start + (c * by_channel)[:, None] + (p * by_position)[None, :]
        mask = (c < G)[:, None] & (p < hw)[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(value * tl.load(dy + at, mask=mask, other=0.0).to(tl.float32), axis=0)
    tl.store(dmap + number.to(tl.int64) * hw + p, total, mask=p < hw)


@triton.jit
def _hidden(x, scale, shift, known, row, column, h, w, by_position):
    """scale x + shift at one position; 0 outside the image. Below 0 it counts for nothing, as the ReLU has it."""
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    at = x + ((row * w + column) * by_position)[None, :]
    value = tl.load(at, mask=known & inside[None, :], other=0.0).to(tl.float32)
    return tl.where(inside[None, :], value * scale + shift, 0.0)


@triton.jit
def _row(x, scale, shift, known, row, column, h, w, by_position):
    """Five positions in a row."""
    a = _hidden(x, scale, shift, known, row, column - 2, h, w, by_position)
    b = _hidden(x, scale, shift, known, row, column - 1, h, w, by_position)
    c = _hidden(x, scale, shift, known, row, column, h, w, by_position)
    d = _hidden(x, scale, shift, known, row, column + 1, h, w, by_position)
    e = _hidden(x, scale, shift, known, row, column + 2, h, w, by_position)
    return a, b, c, d, e


@triton.jit
def _maxima(x, scale, shift, known, row, column, h, w, by_position):
    """Maxima of three in a row, around the column before, this one and the next."""
    a, b, c, d, e = _row(x, scale, shift, known, row, column, h, w, by_position)
    return tl.maximum(tl.maximum(a, b), c), tl.maximum(tl.maximum(b, c), d), tl.maximum(tl.maximum(c, d), e)


@triton.jit
def _from_windows(z, up_2, up_1, down_1, down_2, dscore, row, column, h, w):
    """What the windows around (row - 1 .. row + 1, column) give to z, the first maximum in its own row of them."""
    in_column = (column >= 0) & (column < w)
    at = dscore + row * w + column
    above = tl.load(at - w, mask=in_column & (row >= 1) & (row <= h), other=0.0)[None, :]
    here = tl.load(at, mask=in_column & (row < h), other=0.0)[None, :]
    below = tl.load(at + w, mask=in_column & (row + 1 < h), other=0.0)[None, :]
    total = tl.where((z > up_2) & (z > up_1), above, 0.0)
    total += tl.where((z > up_1) & (z >= down_1), here, 0.0)
    return total + tl.where((z >= down_1) & (z >= down_2), below, 0.0)


@triton.jit
def gradients(
    x, dy, folded, attention, dscore, centre, dx, sums, C, G, g, h, w, hw, parts,
    LAST: tl.constexpr, EVEN: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Grid: groups of all images, tiles of the group's channels, parts of the positions. sums: (B * parts, 3, C).

    A window gives its score's gradient to the first of its maxima in the order of reading, as torch does. Each position
    asks the nine windows that it is in, for which it looks at five rows of five.
    """
    hw = hw // EVEN * EVEN  # the same number: the compiler sees what divides it
    by_channel = 1 if LAST else hw
    by_position = C if LAST else 1
    number, part = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = (c < G)[:, None]
    scale = vector_of(folded, 0, number, c, C, G, g)
    shift = vector_of(folded, 1, number, c, C, G, g)
    point = vector_of(folded, 2, number, c, C, G, g)
    middle = vector_of(centre, 0, number, c, C, G, g)
    start = start_of(number, g, C, G, hw, by_channel)
    across = start + (c * by_channel)[:, None]
    x += across
    attention += number.to(tl.int64) * hw
    dscore += number.to(tl.int64) * hw
    with_x = tl.zeros([CHANNELS], tl.float32)
    plain = tl.zeros([CHANNELS], tl.float32)
    dpoint = tl.zeros([CHANNELS], tl.float32)
    for tile in range(part, tl.cdiv(hw, POSITIONS), parts):
        p = tile * POSITIONS + tl.arange(0, POSITIONS)
        row, column = p // w, p % w
        a, b, z, d, e = _row(x, scale, shift, known, row, column, h, w, by_position)
        up2_l, up2_m, up2_r = _maxima(x, scale, shift, known, row - 2, column, h, w, by_position)
        up_l, up_m, up_r = _maxima(x, scale, shift, known, row - 1, column, h, w, by_position)
        down_l, down_m, down_r = _maxima(x, scale, shift, known, row + 1, column, h, w, by_position)
        down2_l, down2_m, down2_r = _maxima(x, scale, shift, known, row + 2, column, h, w, by_position)
        before = _from_windows(z, up2_l, up_l, down_l, down2_l, dscore, row, column - 1, h, w)
        here = _from_windows(z, up2_m, up_m, down_m, down2_m, dscore, row, column, h, w)
        after = _from_windows(z, up2_r, up_r, down_r, down2_r, dscore, row, column + 1, h, w)
        given = tl.where((z > a) & (z > b), before, 0.0)
        given += tl.where((z > b) & (z >= d), here, 0.0)
        given += tl.where((z >= d) & (z >= e), after, 0.0)
        dz = tl.where(z > 0, point * given, 0.0)
        inside = (p < hw)[None, :]
        at = (p * by_position)[None, :]
        value = tl.load(x + at, mask=known & inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + across + at, mask=known & inside, other=0.0).to(tl.float32)
        share = tl.load(attention + p, mask=p < hw, other=0.0)[None, :]
        tl.store(dx + across + at, gradient + share * gradient + scale * dz, mask=known & inside)
        most = tl.maximum(tl.maximum(up_m, down_m), tl.maximum(tl.maximum(b, d), z))
        with_x += tl.sum(dz * (value - middle), axis=1)
        plain += tl.sum(dz, axis=1)
        dpoint += tl.sum(tl.load(dscore + p, mask=p < hw, other=0.0)[None, :] * tl.maximum(most, 0.0), axis=1)
    sums += ((number // g) * parts + part).to(tl.int64) * 3 * C + (number % g) * G + c
    tl.store(sums, with_x, mask=c < G)
    tl.store(sums + C, plain, mask=c < G)
    tl.store(sums + 2 * C, dpoint, mask=c < G)


@triton.jit
def add_affine(
    dx, x, affine, C, hw,
    LAST: tl.constexpr, EVEN: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """dx += affine_0 + affine_1 x. Grid: images, tiles of channels, tiles of positions."""
    hw = hw // EVEN * EVEN  # the same number: the compiler sees what divides it
    by_channel = 1 if LAST else hw
    by_position = C if LAST else 1
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(2) * POSITIONS + tl.arange(0, POSITIONS)
    start = tl.program_id(0).to(tl.int64) * C * hw
    at = start + (c * by_channel)[:, None] + (p * by_position)[None, :]
    mask = (c < C)[:, None] & (p < hw)[None, :]
    constant = tl.load(affine + c, mask=c < C, other=0.0)[:, None]
    factor = tl.load(affine + C + c, mask=c < C, other=0.0)[:, None]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    old = tl.load(dx + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + at, old + constant + factor * value, mask=mask)
