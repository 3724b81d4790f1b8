"""The passes of SE and CBAM on CUDA, in Triton. What each computes stands in triton_kernels.py.

Images x: (B, C, h, w), float32, bfloat16 or float16, contiguous or channels_last, not empty. Scores: contiguous, of a
floating type. Triton is imported at the first launch. Under its interpreter (TRITON_INTERPRET=1) CPU tensors are
taken too. ``why_not`` is ULSAM's: what runs its kernels runs these.

Passes follow each other over the same x. What the last one read at its end is still in the cache, so every second pass
begins there, with the last image.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from foveate.kernels.ulsam.triton_launch import TYPES, divide_up, power_of_two, processors_and_cache, why_not

__all__ = ["TYPES", "gate", "pool_channels", "pool_positions", "why_not"]

_TILE = 2048  # elements
_LEAST = 8  # tiles that a program goes through before its work is shared


def _kernel(name: str) -> Any:
    """By its name. Importing the module imports Triton."""
    return getattr(importlib.import_module("foveate.kernels.gates.triton_kernels"), name)


def _launch(kernel: str, x: Tensor, grid: int, *arguments: Any, **constants: int) -> None:
    """Run a kernel on the device of x."""
    with torch.cuda.device(x.get_device()):
        _kernel(kernel)[(grid,)](*arguments, **constants, num_warps=4, enable_fp_fusion=True)


def _tile(along: int, across: int, most: int) -> tuple[int, int]:
    """Powers of 2: at most ``most`` of the axis along the memory, and what fits of the other."""
    along = min(power_of_two(along), most, _TILE)
    return along, min(power_of_two(across), _TILE // along)


def pool_positions(x: Tensor, scores: Tensor | None, most: bool, mean: bool) -> Tensor:
    """Maximum and mean over positions of sigmoid(scores) x, or of x without scores.

    Args:
        x: (B, C, h, w).
        scores: (B, 1, h, w).
        most: whether the maximum is wanted.
        mean: whether the mean is wanted.

    Returns:
        (B, 1 or 2, C), the maximum first.
    """
    return _pool(x, scores, most, mean, over_positions=True)


def pool_channels(x: Tensor, scores: Tensor | None) -> Tensor:
    """Maximum and mean over channels of sigmoid(scores) x, or of x without scores.

    Args:
        x: (B, C, h, w).
        scores: (B, C).

    Returns:
        (B, 2, h, w), the maximum first.
    """
    return torch.unflatten(_pool(x, scores, True, True, over_positions=False), 2, x.shape[2:])


def _pool(x: Tensor, scores: Tensor | None, most: bool, mean: bool, over_positions: bool) -> Tensor:
    batch, channels, positions = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    kept, reduced = (channels, positions) if over_positions else (positions, channels)
    if x.is_contiguous() == over_positions:  # the reduced axis is the one along the memory
        steps = reduced, 1
        reduced_tile, kept_tile = _tile(reduced, kept, 512)
    else:
        steps = 1, kept
        kept_tile, reduced_tile = _tile(kept, reduced, 64)
    programs = batch * divide_up(kept, kept_tile)
    parts = min(divide_up(reduced, reduced_tile * _LEAST), divide_up(8 * processors_and_cache(x.device)[0], programs))
    out = torch.empty((batch, most + mean, kept), dtype=x.dtype, device=x.device)
    found = out if parts == 1 else out.new_empty((batch, most + mean, parts, kept), dtype=torch.float32)
    kind = {"MOST": int(most), "MEAN": int(mean)}
    tile = {"BACKWARDS": int(scores is not None), "KEPT": kept_tile, "REDUCED": reduced_tile}
    _launch("pool", x, programs * parts, x, scores, found, kept, reduced, *steps, parts, **kind, **tile)
    if parts > 1:
        grid = batch * (most + mean) * divide_up(kept, 256)
        _launch("join", x, grid, found, out, kept, parts, **kind, KEPT=256)
    return out


def gate(x: Tensor, channels: Tensor | None, positions: Tensor | None) -> Tensor:
    """sigmoid(channels) sigmoid(positions) x, like x.

    Args:
        x: (B, C, h, w).
        channels: scores, (B, C); None counts as a weight of 1.
        positions: scores, (B, 1, h, w); likewise.
    """
    out = torch.empty_like(x)
    batch, count, length = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    if x.is_contiguous():
        steps = length, 1
        along, across = _tile(length, count, 512)
    else:
        steps = 1, count
        across, along = _tile(count, length, 512)
    grid = batch * divide_up(count, across) * divide_up(length, along)
    backwards = int(channels is None or positions is None)
    tile = {"BACKWARDS": backwards, "CHANNELS": across, "POSITIONS": along}
    _launch("gate", x, grid, x, channels, positions, out, count, length, *steps, **tile)
    return out
