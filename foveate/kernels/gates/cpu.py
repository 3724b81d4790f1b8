"""The gates' passes on a CPU: ctypes around cpu.c. What each computes stands there; ``op.py`` calls them.

Images x: (B, C, h, w), float32, bfloat16 or float64 (for tests), contiguous or channels_last, not empty. Scores: of
any floating type. ``infer`` and ``infer_along_channels`` compute a whole gate in one call; the functions that ``op.py``
has for every device compute one pass each. ``excitation.py`` trains with ``dot_positions`` and ``weigh_channels``.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.kernels.c_compiler import library, openmp
from foveate.kernels.dispatch import wide

__all__ = [
    "TYPES",
    "dot_positions",
    "gate",
    "infer",
    "infer_along_channels",
    "joint_gate",
    "pool_channels",
    "pool_positions",
    "weigh_channels",
    "why_not",
]

TYPES = (torch.float32, torch.bfloat16)
"""Types for which the passes are taken by themselves."""

_DEFINES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float64: "FLOAT64"}
_FOLDER = Path(__file__).parent
_FILES = (
    *(_FOLDER / name for name in ("cpu.c", "cpu.h", "cpu_entry.h", "cpu_gradients.h")),
    _FOLDER.parent / "cpu_common.h",
)
_GRAIN = 32768  # elements for which a second thread is woken, as torch has it
_SETTING = "8n3P"  # as in cpu_common.h: B, C, g, h, w, last, threads, scratch_bytes; scratch, parallel, number
_inference = struct.Struct(_SETTING + "3P5n9Pd").pack
_pass = struct.Struct(_SETTING + "6P3n").pack
_training = struct.Struct(_SETTING + "6Pn").pack
_POOL, _SQUEEZE, _WEIGH, _JOINT = range(4)
_ALONG = 5  # the order of a gate that is a convolution along the channels


@functools.cache
def _functions(dtype: torch.dtype) -> Any:
    lib, _ = library(_FILES, _DEFINES[dtype])
    if lib is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
        for function, arguments, result in (
            (lib.infer, [pointer], None),
            (getattr(lib, "pass"), [pointer], None),
            (lib.train, [pointer], None),
            (lib.memory_bytes, [pointer], size),
            (lib.strip_count, [pointer], size),
            (lib.scratch_bytes, [pointer, size, size], size),
        ):
            function.argtypes, function.restype = arguments, result
    return lib


def why_not(dtype: torch.dtype) -> str:
    """Why the source cannot be compiled or loaded for this type, or nothing: the first call tries it."""
    return library(_FILES, _DEFINES[dtype])[1]


_free: list[Tensor] = []  # memory that one call at a time works in; it is kept, for it is small
_KEPT = 1 << 20


def _take(size: int) -> Tensor:
    try:
        found = _free.pop()  # not "if _free": another thread may take the last one in between
    except IndexError:
        return torch.empty(size, dtype=torch.uint8)
    return found if found.numel() >= size else torch.empty(size, dtype=torch.uint8)


def _give_back(memory: Tensor) -> None:
    if memory.numel() <= _KEPT:
        _free.append(memory)


def _setting(x: Tensor, hidden: int = 0, kernel: int = 1) -> tuple[tuple[int, ...], Tensor, int]:
    """What a setting has, its memory, and where in it the threads' scratch ends."""
    lib, (batch, channels, height, width) = _functions(x.dtype), x.shape
    threads = torch.get_num_threads() if x.numel() >= _GRAIN else 1
    sizes = (batch, channels, 1, height, width, not x.is_contiguous(), threads)
    first = struct.pack(_SETTING, *sizes, 0, 0, 0, 0)
    each = lib.scratch_bytes(first, hidden, kernel)
    memory = _take(threads * each + lib.memory_bytes(first))
    return (*sizes, each, memory.data_ptr(), *openmp()), memory, threads * each


def infer(
    x: Tensor, order: int, pools: int, layers: Sequence[Tensor | None], conv: Sequence[Tensor], eps: float = 0.0
) -> Tensor:
    """A whole gate, like x.

    Args:
        x: (B, C, h, w).
        order: 0 channel, 1 spatial, 2 channel-spatial, 3 spatial-channel, 4 parallel.
        pools: of the channel gate: 1 the mean, 2 the maximum, 3 both.
        layers: weight and bias of both layers, (H, C), (H), (C, H), (C); a bias may be None. Without a channel gate:
            nothing.
        conv: the weight of the convolution, (1, 2, k, k), and of the batch norm weight, bias, mean and variance.
            Without a spatial gate: nothing.
        eps: of the batch norm.
    """
    kind = wide(x)
    given = [None if t is None else t.to(kind).contiguous() for t in layers]  # kept until the call is over
    more = [t.to(kind).contiguous() for t in conv]
    hidden = layers[0].shape[0] if layers and layers[0] is not None else 0
    kernel = conv[0].shape[3] if conv else 1
    out = torch.empty_like(x)
    setting, memory, end = _setting(x, hidden, kernel)
    addresses = [0 if t is None else t.data_ptr() for t in given] or [0] * 4
    addresses += [t.data_ptr() for t in more] or [0] * 5
    images = x.data_ptr(), out.data_ptr(), memory.data_ptr() + end
    _functions(x.dtype).infer(_inference(*setting, *images, order, pools, hidden, kernel, 0, *addresses, eps))
    _give_back(memory)
    return out


def infer_along_channels(x: Tensor, weight: Tensor, bias: Tensor | None, circular: bool) -> Tensor:
    """``op.gate_along_channels`` in one call."""
    kind, kernel = wide(x), weight.shape[2]
    taps, start = weight.to(kind).contiguous(), None if bias is None else bias.to(kind)  # kept until the call is over
    out = torch.empty_like(x)
    setting, memory, end = _setting(x, 0, kernel)
    addresses = 0, 0 if start is None else start.data_ptr(), 0, 0, taps.data_ptr(), 0, 0, 0, 0
    images = x.data_ptr(), out.data_ptr(), memory.data_ptr() + end
    _functions(x.dtype).infer(_inference(*setting, *images, _ALONG, 1, 0, kernel, circular, *addresses, 0.0))
    _give_back(memory)
    return out


def pool_positions(x: Tensor, scores: Tensor | None, most: bool, mean: bool) -> Tensor:
    """``op.pool_positions``."""
    setting, memory, _ = _setting(x)
    strips = _functions(x.dtype).strip_count(struct.pack(_SETTING, *setting))
    found = torch.empty((x.shape[0], strips, 2, x.shape[1]), dtype=wide(x))
    _run(setting, memory, x, found, found, None, scores, _POOL, most * 2 + mean)
    return found[:, 0, 0 if most else 1 : 2 if mean else 1].to(x.dtype).contiguous()


def pool_channels(x: Tensor, scores: Tensor | None) -> Tensor:
    """``op.pool_channels``."""
    setting, memory, _ = _setting(x)
    found = torch.empty((x.shape[0], 2, *x.shape[2:]), dtype=wide(x))
    _run(setting, memory, x, found, found, scores, None, _SQUEEZE)
    return found.to(x.dtype)


def gate(x: Tensor, channels: Tensor | None, positions: Tensor | None) -> Tensor:
    """``op.gate``."""
    setting, memory, _ = _setting(x)
    return _run(setting, memory, x, torch.empty_like(x), None, channels, positions, _WEIGH)


def joint_gate(x: Tensor, channels: Tensor, positions: Tensor, product: bool) -> Tensor:
    """``op.joint_gate``."""
    setting, memory, _ = _setting(x)
    return _run(setting, memory, x, torch.empty_like(x), None, channels, positions, _JOINT, product)


def dot_positions(x: Tensor, y: Tensor) -> Tensor:
    """The sums of x y over the positions, (B, C); y is like x, in the same memory format."""
    setting, memory, _ = _setting(x)
    strips = _functions(x.dtype).strip_count(struct.pack(_SETTING, *setting))
    found = torch.empty((x.shape[0], strips, x.shape[1]), dtype=wide(x))
    _functions(x.dtype).train(_training(*setting, x.data_ptr(), y.data_ptr(), 0, found.data_ptr(), 0, 0, 0))
    _give_back(memory)
    return found[:, 0]


def weigh_channels(x: Tensor, weights: Tensor, shift: Tensor | None = None) -> Tensor:
    """weights x + shift, like x; both (B, C)."""
    setting, memory, _ = _setting(x)
    given = [None if t is None else t.to(wide(x)).contiguous() for t in (weights, shift)]
    out = torch.empty_like(x)
    addresses = [0 if t is None else t.data_ptr() for t in given]
    what = 1 if shift is None else 2
    _functions(x.dtype).train(_training(*setting, x.data_ptr(), 0, out.data_ptr(), 0, *addresses, what))
    _give_back(memory)
    return out


def _run(
    setting: tuple[int, ...],
    memory: Tensor,
    x: Tensor,
    out: Tensor,
    found: Tensor | None,
    channels: Tensor | None,
    positions: Tensor | None,
    what: int,
    flag: int = 0,
) -> Tensor:
    kind, batch = wide(x), x.shape[0]
    scores = [None if t is None else t.to(kind).contiguous() for t in (channels, positions)]
    sigmoids = torch.empty(batch * (x.shape[1] + x.shape[2] * x.shape[3]), dtype=kind) if what != _JOINT else None
    addresses = [0 if t is None else t.data_ptr() for t in (x, out, found, *scores, sigmoids)]
    getattr(_functions(x.dtype), "pass")(_pass(*setting, *addresses, what, flag, flag))
    _give_back(memory)
    return out
