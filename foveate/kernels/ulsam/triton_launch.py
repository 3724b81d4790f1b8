"""ULSAM's passes on CUDA, in Triton. What each computes stands in triton_forward.py and triton_backward.py.

Images x, dy: (B, C, h, w), float32, bfloat16 or float16, contiguous or channels_last, not empty. Vectors and maps:
float32. Triton is imported at the first launch. Under its interpreter (TRITON_INTERPRET=1) CPU tensors are taken too.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.kernels.ulsam.reference import spatial_softmax
from foveate.kernels.ulsam.reference_training import train_backward, train_forward

__all__ = [
    "TYPES",
    "add_affine_",
    "divide_up",
    "fold",
    "gradients",
    "infer",
    "map_gradient",
    "moments",
    "power_of_two",
    "processors_and_cache",
    "reweight",
    "scores",
    "train_backward",
    "train_forward",
    "why_not",
]

logger = logging.getLogger("foveate")

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types for which the fused path is taken by itself."""

_TILE, _WINDOW_TILE = 2048, 512  # elements; the small one, with 8 warps, where each needs its neighbours in registers
_ALONE = 2**14  # elements of a group that one program is not slow with, even if no other runs


@functools.cache
def why_not(dtype: torch.dtype) -> str:
    """Why the kernels cannot run on every device that there is, or nothing: the first call tries one."""
    try:
        devices = [torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count())]
        if not devices:
            raise RuntimeError("no CUDA device is available")
        if min(devices) < ((8, 0) if dtype is torch.bfloat16 else (7, 0)):
            raise RuntimeError(f"{dtype} on devices of capability {devices}")
        _kernel("backward.add_affine")
        one = torch.ones((1, 1, 1, 1), dtype=dtype, device="cuda")
        add_affine_(one, one.clone(), one.float().flatten(), one.float().flatten())
    except Exception as error:  # noqa: BLE001  no Triton, no driver, no compiler: the plain definition serves
        reason = str(error).strip().split("\n")[-1]
        _log(reason)
        return f"the CUDA kernels cannot be used: {reason}"
    return ""


@functools.cache
def _log(reason: str) -> None:
    """Each reason once."""
    logger.info("the CUDA kernels cannot be used, so the plain definition is: %s", reason)


# ---- launches: how many programs one needs, and how many run at a time (Triton has two of these, but comes in late) --


def divide_up(whole: int, part: int) -> int:
    """How many parts make a whole, the last perhaps smaller."""
    return -(-whole // part)


def power_of_two(number: int) -> int:
    """The least that is not below a number of 1 or more."""
    return 1 << (number - 1).bit_length()


@functools.cache
def processors_and_cache(device: torch.device) -> tuple[int, int]:
    """How many multiprocessors there are, and the bytes of the L2 cache."""
    if device.type == "cpu":  # Triton's interpreter
        return 4, 2**20
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.L2_cache_size


def _kernel(name: str) -> Any:
    """By the name MODULE.KERNEL. Importing the module imports Triton."""
    module, kernel = name.split(".")
    return getattr(importlib.import_module(f"foveate.kernels.ulsam.triton_{module}"), kernel)


def _launch(kernel: str, x: Tensor, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **tile: int) -> None:
    """Run a kernel on the device of x. Those of tiles get constants of x: how its positions can be read together."""
    if "POSITIONS" in tile:
        tile |= {"LAST": int(not x.is_contiguous()), "EVEN": math.gcd(x.shape[2] * x.shape[3], 16)}
    with torch.cuda.device(x.get_device()):
        _kernel(kernel)[grid](*arguments, **tile, num_warps=warps, enable_fp_fusion=True)


def _sizes(x: Tensor, groups: int) -> tuple[int, ...]:
    """C, G, g, h, w, hw."""
    _, channels, height, width = x.shape
    return channels, channels // groups, groups, height, width, height * width


def _tile(x: Tensor, channels: int, elements: int = _TILE, most: int = 64) -> dict[str, int]:
    """Powers of 2: the longer side along the memory, at most ``most`` channels where these come last."""
    channels, positions = power_of_two(channels), power_of_two(x.shape[2] * x.shape[3])
    if x.is_contiguous():
        positions = min(positions, elements // 8)
        return {"CHANNELS": min(channels, elements // positions), "POSITIONS": positions}
    channels = min(channels, most)
    return {"CHANNELS": channels, "POSITIONS": min(positions, elements // channels)}


def _by_group(kernel: str, x: Tensor, groups: int, *tensors: Tensor, warps: int = 4, **tile: int) -> None:
    """One program for each group of each image and each tile of positions."""
    grid = (x.shape[0] * groups, divide_up(x.shape[2] * x.shape[3], tile["POSITIONS"]))
    _launch(kernel, x, grid, *tensors, *_sizes(x, groups), warps=warps, **tile)


def _maps(x: Tensor, groups: int) -> Tensor:
    return torch.empty((x.shape[0], groups, *x.shape[2:]), dtype=torch.float32, device=x.device)


# ---- forward ----


def fold(vectors: Sequence[Tensor], groups: int, eps: float, point_eps: float) -> Tensor:
    """Both batch norms folded, (3C + g): scale, shift, point, bias.

    Args:
        vectors: of DW weight and bias, of its batch norm weight, bias, mean and variance; the same six of PW. float32.
        groups: g.
        eps: of the first batch norm.
        point_eps: of the second.
    """
    vectors = [vector.detach() for vector in vectors]
    channels = vectors[2].numel()
    folded = vectors[0].new_empty(3 * channels + groups)
    grid = (divide_up(channels, 256),)
    sizes = (channels, channels // groups, groups)
    _launch("forward.fold", folded, grid, *vectors, folded, *sizes, eps, point_eps, CHANNELS=256)
    return folded


def infer(x: Tensor, folded: Tensor, groups: int) -> Tensor:
    """x + A x, (B, C, h, w).

    One program takes a whole group where there are enough of them, or a group is small, and where all that run at a
    time fit the cache. Otherwise some images after the other, as many as fit, each with all programs.
    """
    batch, channels, height, width = x.shape
    out = torch.empty_like(x)
    processors, cache = processors_and_cache(x.device)
    each = channels // groups * height * width
    live = min(batch * groups, 4 * processors) * each * x.element_size()
    if (batch * groups >= processors or each <= _ALONE) and 4 * live <= 3 * cache:
        tensors = (x, folded, _maps(x, groups), out)
        tile = _tile(x, channels // groups, _WINDOW_TILE)
        _launch("forward.infer", x, (batch * groups,), *tensors, *_sizes(x, groups), warps=8, **tile)
        return out
    images = max(1, cache // (2 * channels * height * width * x.element_size()))
    for some, some_out in zip(torch.split(x, images), torch.split(out, images), strict=True):
        attention = spatial_softmax(scores(some, folded, groups).relu_())
        _by_group("forward.reweight", some, groups, some, attention, some_out, **_tile(x, channels // groups))
    return out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (biased) of each channel, (C) and (C)."""
    batch, channels, height, width = x.shape
    tile = _tile(x, channels)
    across, units = divide_up(channels, tile["CHANNELS"]), batch * divide_up(height * width, tile["POSITIONS"])
    parts = min(units, divide_up(4 * processors_and_cache(x.device)[0], across))
    found = torch.empty((parts, 3, channels), dtype=torch.float32, device=x.device)
    _launch("forward.moments", x, (across, parts), x, found, batch, channels, height * width, parts, **tile)
    count, means, squares = found.double().unbind(1)
    mean = (count * means).sum(0) / (batch * height * width)
    square = squares.sum(0) + (count * (means - mean).square()).sum(0)
    return (mean + x[0, :, 0, 0]).float(), (square / (batch * height * width)).float()


def scores(x: Tensor, folded: Tensor, groups: int) -> Tensor:
    """What the softmax's ReLU gets, (B, g, h, w)."""
    score = _maps(x, groups)
    tile = _tile(x, x.shape[1] // groups, _WINDOW_TILE)
    _by_group("forward.scores", x, groups, x, folded, score, warps=8, **tile)
    return score


def reweight(x: Tensor, attention: Tensor) -> Tensor:
    """x + A x for maps (B, g, h, w)."""
    out, groups = torch.empty_like(x), attention.shape[1]
    _by_group("forward.reweight", x, groups, x, attention, out, **_tile(x, x.shape[1] // groups))
    return out


# ---- backward ----


def map_gradient(x: Tensor, dy: Tensor, groups: int) -> Tensor:
    """dA, (B, g, h, w), for dy in the strides of x."""
    dmap = _maps(x, groups)
    _by_group("backward.map_gradient", x, groups, x, dy, dmap, **_tile(x, x.shape[1] // groups))
    return dmap


def gradients(
    x: Tensor, dy: Tensor, folded: Tensor, attention: Tensor, dscore: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of x without what goes through the statistics of a batch, and of the vectors.

    Args:
        x: the input.
        dy: the gradient of the output, in the strides of x.
        folded: as in the forward pass; the bias is not used.
        attention: A.
        dscore: the gradient of the scores.
        centre: (C), subtracted from x in the second result.

    Returns:
        dx (B, C, h, w); sum of dz (x - centre), sum of dz, and the gradient of point, (C) each.
    """
    (batch, channels, height, width), groups = x.shape, attention.shape[1]
    last = not x.is_contiguous()  # then fewer elements and threads: the addresses take more registers
    tile = _tile(x, channels // groups, _WINDOW_TILE // 2, 32) if last else _tile(x, channels // groups, _WINDOW_TILE)
    tiles = divide_up(height * width, tile["POSITIONS"])
    across = divide_up(channels // groups, tile["CHANNELS"])
    parts = min(tiles, divide_up(8 * processors_and_cache(x.device)[0], batch * groups * across))
    dx = torch.empty_like(x)
    sums = torch.empty((batch * parts, 3, channels), dtype=torch.float32, device=x.device)
    tensors = (x, dy, folded, attention, dscore, centre, dx, sums)
    grid = (batch * groups, across, parts)
    _launch("backward.gradients", x, grid, *tensors, *_sizes(x, groups), parts, warps=4 if last else 8, **tile)
    with_x, plain, point = sums.sum(0).unbind(0)
    return dx, with_x.clone(), plain.clone(), point.clone()


def add_affine_(dx: Tensor, x: Tensor, constant: Tensor, factor: Tensor) -> None:
    """``dx += constant + factor * x``, (C) each, in place."""
    tile = _tile(x, x.shape[1])
    grid = (x.shape[0], divide_up(x.shape[1], tile["CHANNELS"]), divide_up(x.shape[2] * x.shape[3], tile["POSITIONS"]))
    affine = torch.cat([constant, factor])
    _launch("backward.add_affine", x, grid, dx, x, affine, x.shape[1], x.shape[2] * x.shape[3], **tile)
