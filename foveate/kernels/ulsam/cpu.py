"""ULSAM's passes on a CPU: ctypes around cpu.c. What each computes stands there; ``op.py`` calls them.

Images x, dy: (B, C, h, w), float32, bfloat16 or float64 (for gradcheck), contiguous or channels_last, not empty.
Vectors and maps: float32, or float64 where the images are.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.kernels.c_compiler import library, openmp
from foveate.kernels.dispatch import dense, wide
from foveate.kernels.ulsam.reference_training import Trained, in_the_strides_of

__all__ = ["TYPES", "evaluate", "fold", "infer", "train_backward", "train_forward", "why_not"]

TYPES = (torch.float32, torch.bfloat16)
"""Types for which the fused path is taken by itself."""

_DEFINES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float64: "FLOAT64"}
_FOLDER = Path(__file__).parent
_FILES = (
    *(_FOLDER / name for name in ("cpu.c", "cpu.h", "cpu_gradients.h", "cpu_training.h")),
    _FOLDER.parent / "cpu_common.h",
)
_BLOCK, _LINE, _STRIP = 128, 16, 4096  # as in cpu.h


# As in cpu_common.h. Packed, for objects of ctypes and many arguments take longer than a small input.
_SETTING = "8n3P"  # B, C, g, h, w, last, threads, scratch_bytes; scratch, parallel, number
_setting = struct.Struct(_SETTING).pack
_inference = struct.Struct(_SETTING + "4P").pack  # x, out, memory, folded
_inference_with = struct.Struct(_SETTING + "4P2d12P").pack  # ..., eps, point_eps, vectors


@functools.cache
def _functions(dtype: torch.dtype) -> Any:
    lib, _ = library(_FILES, _DEFINES[dtype])
    if lib is not None:
        pointer, size, number = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_double
        lib.fold.argtypes = [pointer, size, size, number, number, pointer]
        lib.infer.argtypes = [pointer]
        lib.train_forward.argtypes = [pointer, pointer, pointer, number, number, *[pointer] * 7]
        lib.train_backward.argtypes = [pointer, pointer, pointer, pointer, number, number, *[pointer] * 7]
        for function in (lib.fold, lib.infer, lib.train_forward, lib.train_backward):
            function.restype = None
        lib.training_bytes.argtypes, lib.training_bytes.restype = [pointer], size
    return lib


def why_not(dtype: torch.dtype) -> str:
    """Why the source cannot be compiled or loaded for this type, or nothing: the first call tries it."""
    return library(_FILES, _DEFINES[dtype])[1]


class _Scratch:
    """Memory that one call at a time works in. It is kept, for it is small."""

    __slots__ = ("address", "size", "tensor")

    def __init__(self) -> None:
        self.address = self.size = 0
        self.tensor: Tensor | None = None

    def grow(self, size: int) -> None:
        """To so many bytes."""
        self.tensor = torch.empty(size, dtype=torch.uint8)
        self.address, self.size = self.tensor.data_ptr(), size


_free: list[_Scratch] = []
_KEPT = 1 << 18  # bytes of maps


def _take() -> _Scratch:
    try:
        return _free.pop()  # not "if _free": another thread may take the last one in between
    except IndexError:
        return _Scratch()


def _sizes(x: Tensor, groups: int, each: int, scratch: _Scratch, more: int = 0) -> tuple[int, ...]:
    """What a setting has, with ``each`` bytes of the scratch for each thread, and ``more`` behind them."""
    batch, channels, height, width = x.shape
    threads = torch.get_num_threads()
    if scratch.size < threads * each + more:
        scratch.grow(threads * each + more)
    last = not x.is_contiguous()
    return batch, channels, groups, height, width, last, threads, each, scratch.address, *openmp()


def _forward_scratch(x: Tensor) -> int:
    """Bytes for each thread."""
    width, size = x.shape[3], 8 if x.dtype is torch.float64 else 4
    if x.is_contiguous():
        return size * (4 * (max(_STRIP, width) + 2 * width) + 8)
    return size * (width + 1) * (2 * _BLOCK + 8)


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
    _functions(torch.float32).fold(_addresses(vectors), channels, groups, eps, point_eps, folded.data_ptr())
    return folded


def infer(x: Tensor, folded: Tensor, groups: int) -> Tensor:
    """x + A x, everything in one go, (B, C, h, w)."""
    return _infer(x, groups, _inference, (), folded.data_ptr())


def evaluate(x: Tensor, vectors: Sequence[Tensor], groups: int, eps: float, point_eps: float) -> Tensor | None:
    """``infer`` with what ``fold`` gives for the same vectors, in one call: for small inputs calls take the time.

    Args:
        x: (B, C, h, w).
        vectors: as ``fold`` takes them, plain tensors on the CPU, of any floating type.
        groups: g.
        eps: of the first batch norm.
        point_eps: of the second.

    Returns:
        x + A x; None for x in float64.
    """
    kind, given = torch.float32, [eps, point_eps]
    if x.dtype is torch.float64:
        return None
    converted = []  # kept until the call is over
    for v in vectors:
        if v.dtype is not kind or not v.is_contiguous():
            v = v.to(kind).contiguous()
            converted.append(v)
        given.append(v.data_ptr())
    return _infer(x, groups, _inference_with, given)


def _infer(x: Tensor, groups: int, pack: Callable[..., bytes], given: Sequence[float], folded: int = 0) -> Tensor:
    batch, channels, height, width = x.shape
    size, scratch = 8 if x.dtype is torch.float64 else 4, _take()
    memory = size * (batch * groups * height * width + (0 if folded else 3 * channels + groups))
    each, out = _forward_scratch(x), torch.empty_like(x)
    if memory > _KEPT:
        maps = torch.empty(memory, dtype=torch.uint8)
        sizes, address = _sizes(x, groups, each, scratch), maps.data_ptr()
    else:
        sizes = _sizes(x, groups, each, scratch, memory)
        address = scratch.address + sizes[6] * each
    _functions(x.dtype).infer(pack(*sizes, x.data_ptr(), out.data_ptr(), address, folded, *given))
    _free.append(scratch)
    return out


def train_forward(x: Tensor, parameters: list[Tensor], running: list[Tensor], eps: float, point_eps: float) -> Trained:
    """``op.train``."""
    x = dense(x)
    vectors, kind = _vectors(x, [*parameters, *running]), wide(x)
    channels, groups = x.shape[1], parameters[5].numel()
    batch, point_batch = not running[0].numel(), not running[2].numel()
    scratch = _take()
    setting = _setting(*_sizes(x, groups, _forward_scratch(x), scratch))
    maps = (x.shape[0], groups, *x.shape[2:])
    out, attention, score = torch.empty_like(x), torch.empty(maps, dtype=kind), torch.empty(maps, dtype=kind)
    mean, var = (torch.empty(channels * batch, dtype=kind) for k in range(2))
    observed = torch.empty(2 * channels * batch + 2 * groups * point_batch, dtype=kind)
    made = (out, attention, score, mean, var, observed, _work(x, setting))
    given = [tensor.data_ptr() for tensor in made]
    _functions(x.dtype).train_forward(setting, x.data_ptr(), _addresses(vectors), eps, point_eps, *given)
    _free.append(scratch)
    return made[:6]


def train_backward(
    dy: Tensor,
    x: Tensor,
    parameters: list[Tensor],
    running: list[Tensor],
    eps: float,
    point_eps: float,
    attention: Tensor,
    score: Tensor,
    mean: Tensor,
    var: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x and of the parameters, from dy and what ``train_forward`` gave."""
    x = dense(x)
    dy = in_the_strides_of(x, dy)
    vectors, kind, groups = _vectors(x, [*parameters, *running]), wide(x), attention.shape[1]
    scratch = _take()
    setting = _setting(*_sizes(x, groups, _backward_scratch(x), scratch))
    dx, work = torch.empty_like(x), _work(x, setting)
    gradients = [torch.empty(p.shape, dtype=kind) for p in parameters]
    maps = [tensor.data_ptr() for tensor in (attention, score, mean, var, dx)]
    given, wanted = _addresses(vectors), _addresses(gradients)
    _functions(x.dtype).train_backward(
        *(setting, x.data_ptr(), dy.data_ptr(), given, eps, point_eps, *maps, wanted, work.data_ptr())
    )
    _free.append(scratch)
    return dx, [g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)]


def _backward_scratch(x: Tensor) -> int:
    """Bytes for each thread."""
    width, size = x.shape[3], 8 if x.dtype is torch.float64 else 4
    if x.is_contiguous():
        return size * 8 * (max(_STRIP, 4 * width) + 4 * width + 4)
    return size * 18 * (width + 2) * _LINE


def _work(x: Tensor, setting: bytes) -> Tensor:
    """The memory between the passes."""
    return torch.empty(_functions(x.dtype).training_bytes(setting), dtype=torch.uint8)


def _vectors(x: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    kind = wide(x)
    return [t if t.dtype is kind and t.is_contiguous() else t.to(kind).contiguous() for t in tensors]


def _addresses(tensors: Sequence[Tensor]) -> bytes:
    """Of the first element of each, NULL of an empty one."""
    return struct.pack(f"{len(tensors)}P", *(tensor.data_ptr() for tensor in tensors))
