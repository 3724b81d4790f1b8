"""ULSAM's passes on a CPU: ctypes around ulsam_cpu.c. What each computes stands there; ``ulsam_op`` calls them.

Images x, dy: (B, C, h, w), float32, bfloat16 or float64 (for gradcheck), contiguous or channels_last, not empty.
Vectors and maps: float32, or float64 where the images are.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.kernels.backends import dense, in_the_strides_of, wide
from foveate.kernels.compiled import library, openmp
from foveate.kernels.ulsam_train import Trained

__all__ = ["TYPES", "available", "evaluate", "fold", "infer", "train_backward", "train_forward"]

TYPES = (torch.float32, torch.bfloat16)
"""Types for which the fused path is taken by itself."""

_DEFINES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float64: "FLOAT64"}
_FOLDER = Path(__file__).parent
_FILES = tuple(
    _FOLDER / name for name in ("ulsam_cpu.c", "ulsam_cpu.h", "ulsam_cpu_gradients.h", "ulsam_cpu_training.h")
)
_BLOCK, _LINE, _STRIP = 128, 16, 4096  # as in ulsam_cpu.h


class _Setting(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_ssize_t) for name in ("B", "C", "g", "h", "w", "last", "threads", "scratch_bytes")),
        ("scratch", ctypes.c_void_p),
        ("parallel", ctypes.c_void_p),
        ("number", ctypes.c_void_p),
    ]


@functools.cache
def _functions(dtype: torch.dtype) -> Any:
    lib = library(_FILES, _DEFINES[dtype])
    if lib is not None:
        pointer, setting, size, number = ctypes.c_void_p, ctypes.POINTER(_Setting), ctypes.c_ssize_t, ctypes.c_double
        lib.fold.argtypes = [pointer, size, size, number, number, pointer]
        lib.infer.argtypes = [setting, *[pointer] * 4]
        lib.evaluate.argtypes = [setting, pointer, pointer, number, number, *[pointer] * 2]
        lib.train_forward.argtypes = [setting, pointer, pointer, number, number, *[pointer] * 7]
        lib.train_backward.argtypes = [setting, pointer, pointer, pointer, number, number, *[pointer] * 7]
        for function in (lib.fold, lib.infer, lib.evaluate, lib.train_forward, lib.train_backward):
            function.restype = None
        lib.training_bytes.argtypes, lib.training_bytes.restype = [setting], size
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
    return 4 * (max(_STRIP, width) + 2 * width) + 8 if x.is_contiguous() else width * (2 * _BLOCK + 8)


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
    addresses = _addresses(vectors)
    _functions(torch.float32).fold(_start(addresses), channels, groups, eps, point_eps, folded.data_ptr())
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
    batch, channels, height, width = x.shape
    work = torch.empty(batch * groups * height * width + 3 * channels + groups)
    out = torch.empty_like(x)
    addresses = _addresses(vectors)
    _functions(x.dtype).evaluate(
        _setting(x, groups, _forward_scratch(x)),
        *(x.data_ptr(), _start(addresses), eps, point_eps, work.data_ptr(), out.data_ptr()),
    )
    return out


def train_forward(x: Tensor, parameters: list[Tensor], running: list[Tensor], eps: float, point_eps: float) -> Trained:
    """``ulsam_op.train``."""
    x = dense(x)
    vectors, kind = _vectors(x, [*parameters, *running]), wide(x)
    channels, groups = x.shape[1], parameters[5].numel()
    batch, point_batch = not running[0].numel(), not running[2].numel()
    setting = _setting(x, groups, _forward_scratch(x))
    maps = (x.shape[0], groups, *x.shape[2:])
    out, attention, score = torch.empty_like(x), torch.empty(maps, dtype=kind), torch.empty(maps, dtype=kind)
    mean, var = (torch.empty(channels * batch, dtype=kind) for k in range(2))
    observed = torch.empty(2 * channels * batch + 2 * groups * point_batch, dtype=kind)
    made = (out, attention, score, mean, var, observed, _work(x, setting))
    addresses, given = _addresses(vectors), [tensor.data_ptr() for tensor in made]
    _functions(x.dtype).train_forward(setting, x.data_ptr(), _start(addresses), eps, point_eps, *given)
    return made[:6]


def train_backward(
    dy: Tensor,
    x: Tensor,
    parameters: list[Tensor],
    running: list[Tensor],
    eps: float,
    point_eps: float,
    map: Tensor,  # noqa: A002
    score: Tensor,
    mean: Tensor,
    var: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x and of the parameters, from dy and what ``train_forward`` gave."""
    x = dense(x)
    dy = in_the_strides_of(x, dy)
    vectors, kind, groups = _vectors(x, [*parameters, *running]), wide(x), map.shape[1]
    setting = _setting(x, groups, _backward_scratch(x))
    dx, work = torch.empty_like(x), _work(x, setting)
    gradients = [torch.empty(p.shape, dtype=kind) for p in parameters]
    given, wanted = _addresses(vectors), _addresses(gradients)
    maps = [tensor.data_ptr() for tensor in (map, score, mean, var, dx)]
    _functions(x.dtype).train_backward(
        *(setting, x.data_ptr(), dy.data_ptr(), _start(given), eps, point_eps, *maps, _start(wanted), work.data_ptr())
    )
    return dx, [g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)]


def _backward_scratch(x: Tensor) -> int:
    width = x.shape[3]
    return 8 * (max(_STRIP, 4 * width) + 4 * width + 4) if x.is_contiguous() else 18 * (width + 2) * _LINE


def _work(x: Tensor, setting: _Setting) -> Tensor:
    """The memory between the passes."""
    return torch.empty(_functions(x.dtype).training_bytes(setting), dtype=torch.uint8)


def _vectors(x: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    kind = wide(x)
    return [t if t.dtype is kind and t.is_contiguous() else t.to(kind).contiguous() for t in tensors]


def _addresses(tensors: Sequence[Tensor]) -> array[int]:
    """Of the first element of each, NULL of an empty one. The caller keeps it as long as C reads it."""
    return array("Q", [tensor.data_ptr() for tensor in tensors])


def _start(numbers: array[int]) -> int:
    return numbers.buffer_info()[0]
