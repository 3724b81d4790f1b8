"""ULSAM's passes on a CPU: ctypes around ulsam_cpu.c. What each computes stands there; ``ulsam_op`` calls them.

Images x, dy: (B, C, h, w), float32, bfloat16 or float64 (for gradcheck), contiguous or channels_last, not empty.
Vectors and maps: float32, or float64 where the images are.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.kernels.compiled import library, openmp

__all__ = [
    "TYPES",
    "add_affine_",
    "available",
    "evaluate",
    "fold",
    "gradients",
    "infer",
    "map_gradient",
    "moments",
    "reweight",
    "scores",
]

TYPES = (torch.float32, torch.bfloat16)
"""Types for which the fused path is taken by itself."""

_DEFINES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float64: "FLOAT64"}
_FOLDER = Path(__file__).parent
_FILES = tuple(_FOLDER / name for name in ("ulsam_cpu.c", "ulsam_cpu.h", "ulsam_cpu_gradients.h"))
_BLOCK, _LINE, _STRIP = 128, 16, 4096  # as in ulsam_cpu.h


class _Setting(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_ssize_t) for name in ("B", "C", "g", "h", "w", "last", "threads", "scratch_bytes")),
        ("scratch", ctypes.c_void_p),
        ("parallel", ctypes.c_void_p),
        ("number", ctypes.c_void_p),
    ]


_Twelve = ctypes.c_void_p * 12


@functools.cache
def _functions(dtype: torch.dtype) -> Any:
    lib = library(_FILES, _DEFINES[dtype])
    if lib is not None:
        pointer, setting, size, number = ctypes.c_void_p, ctypes.POINTER(_Setting), ctypes.c_ssize_t, ctypes.c_double
        lib.fold.argtypes = [pointer, size, size, number, number, pointer]
        lib.evaluate.argtypes = [setting, pointer, pointer, number, number, pointer, pointer, pointer]
        lib.moments.argtypes = [setting, pointer, pointer, size]
        for name, count in (("infer", 4), ("scores", 3), ("reweight", 3), ("map_gradient", 3), ("gradients", 8)):
            getattr(lib, name).argtypes = [setting, *[pointer] * count]
        lib.add_affine.argtypes = [setting, pointer, pointer, pointer]
        functions = (lib.fold, lib.evaluate, lib.moments, lib.add_affine, lib.infer, lib.scores, lib.reweight)
        for function in (*functions, lib.map_gradient, lib.gradients):
            function.restype = None
    return lib


def available(dtype: torch.dtype) -> bool:
    """Whether the source is compiled for this type, or can be: the first call tries it."""
    return _functions(dtype) is not None


class _Own(threading.local):
    """The memory that the threads of one caller work in; it is kept, for it is small."""

    scratch = torch.empty(0, dtype=torch.uint8)


_own = _Own()


@functools.lru_cache(maxsize=256)
def _sizes(caller: int, shape: torch.Size, groups: int, last: bool, threads: int, each: int) -> _Setting:  # noqa: ARG001
    return _Setting(*shape[:2], groups, *shape[2:], last, threads, each, None, *openmp())


def _setting(x: Tensor, groups: int, numbers: int = 0) -> _Setting:
    """The sizes, and the memory to work in: ``numbers`` of float32 or float64 for each thread. For one caller."""
    threads = torch.get_num_threads()
    each = numbers * (8 if x.dtype is torch.float64 else 4)
    setting = _sizes(threading.get_ident(), x.shape, groups, not x.is_contiguous(), threads, each)
    if _own.scratch.numel() < threads * each:
        _own.scratch = torch.empty(threads * each, dtype=torch.uint8)
    setting.scratch = _own.scratch.data_ptr()
    return setting


def _forward_scratch(x: Tensor) -> int:
    width = x.shape[3]
    return 4 * (max(_STRIP, width) + 2 * width) + 8 if x.is_contiguous() else (2 * width + 4) * _BLOCK


def fold(vectors: Sequence[Tensor], groups: int, eps: float, point_eps: float) -> Tensor:
    """Both batch norms folded, (3C + g): scale, shift, point, bias.

    Args:
        vectors: of DW weight and bias, of its batch norm weight, bias, mean and variance; the same six of PW. float32.
        groups: g.
        eps: of the first batch norm.
        point_eps: of the second.
    """
    channels = vectors[2].numel()
    folded = torch.empty(3 * channels + groups)
    addresses = _Twelve(*[vector.data_ptr() for vector in vectors])
    _functions(torch.float32).fold(addresses, channels, groups, eps, point_eps, folded.data_ptr())
    return folded


def infer(x: Tensor, folded: Tensor, groups: int) -> Tensor:
    """x + A x, everything in one go, (B, C, h, w)."""
    setting = _setting(x, groups, _forward_scratch(x))
    score = torch.empty((x.shape[0], groups, *x.shape[2:]), dtype=folded.dtype)
    out = torch.empty_like(x)
    _functions(x.dtype).infer(setting, x.data_ptr(), folded.data_ptr(), score.data_ptr(), out.data_ptr())
    return out


def evaluate(x: Tensor, vectors: Sequence[Tensor], groups: int, eps: float, point_eps: float) -> Tensor:
    """``infer`` with what ``fold`` gives for the same vectors, in one call: for small inputs calls take the time."""
    score = torch.empty((x.shape[0], groups, *x.shape[2:]))
    folded = torch.empty(3 * x.shape[1] + groups)
    out = torch.empty_like(x)
    addresses = _Twelve(*[vector.data_ptr() for vector in vectors])
    _functions(x.dtype).evaluate(
        _setting(x, groups, _forward_scratch(x)),
        *(x.data_ptr(), addresses, eps, point_eps, folded.data_ptr(), score.data_ptr(), out.data_ptr()),
    )
    return out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (biased) of each channel, (C) and (C)."""
    setting = _setting(x, 1)
    batch, channels = x.shape[:2]
    places = x.shape[2] * x.shape[3]
    strips = min(places, -(-2 * torch.get_num_threads() // batch))
    sums = torch.empty((batch * strips, 2, channels), dtype=torch.float64)
    _functions(x.dtype).moments(setting, x.data_ptr(), sums.data_ptr(), strips)
    mean, square = sums.sum(0).div_(batch * places)
    wide = torch.promote_types(x.dtype, torch.float32)
    return mean.to(wide, copy=True), square.addcmul_(mean, mean, value=-1).clamp_(min=0).to(wide)


def scores(x: Tensor, folded: Tensor, groups: int) -> Tensor:
    """What the softmax's ReLU gets, (B, g, h, w)."""
    setting = _setting(x, groups, _forward_scratch(x))
    score = torch.empty((x.shape[0], groups, *x.shape[2:]), dtype=folded.dtype)
    _functions(x.dtype).scores(setting, x.data_ptr(), folded.data_ptr(), score.data_ptr())
    return score


def reweight(x: Tensor, attention: Tensor) -> Tensor:
    """x + A x for maps (B, g, h, w)."""
    setting = _setting(x, attention.shape[1])
    out = torch.empty_like(x)
    _functions(x.dtype).reweight(setting, x.data_ptr(), attention.data_ptr(), out.data_ptr())
    return out


def map_gradient(x: Tensor, dy: Tensor, groups: int) -> Tensor:
    """dA, (B, g, h, w), for dy in the strides of x."""
    setting = _setting(x, groups)
    dmap = torch.empty((x.shape[0], groups, *x.shape[2:]), dtype=torch.promote_types(x.dtype, torch.float32))
    _functions(x.dtype).map_gradient(setting, x.data_ptr(), dy.data_ptr(), dmap.data_ptr())
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
    width = x.shape[3]
    planes = 8 * (max(_STRIP, 4 * width) + 4 * width + 4)
    numbers = planes if x.is_contiguous() else 18 * (width + 2) * _LINE
    setting = _setting(x, attention.shape[1], numbers)
    dx = torch.empty_like(x)
    sums = torch.empty((*x.shape[:2], 3), dtype=folded.dtype)
    arrays = (x, dy, folded, attention, dscore, centre, dx, sums)
    _functions(x.dtype).gradients(setting, *[array.data_ptr() for array in arrays])
    with_x, plain, point = (column.clone() for column in sums.sum(0).unbind(1))
    return dx, with_x, plain, point


def add_affine_(dx: Tensor, x: Tensor, constant: Tensor, factor: Tensor) -> None:
    """``dx += constant + factor * x``, (C) each, in place."""
    setting = _setting(x, 1)
    affine = torch.cat([constant, factor])
    _functions(x.dtype).add_affine(setting, x.data_ptr(), affine.data_ptr(), dx.data_ptr())
