"""Which module has the passes for a device, and whether an input can take them.

ULSAM's backends are modules with the functions of ``ulsam_cpu``, those of the gates with the functions of
``gates_triton``; another device is one line in ``BACKENDS`` or in ``GATES``.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from foveate.kernels.switch import enabled

__all__ = [
    "BACKENDS",
    "GATES",
    "backend_for",
    "dense",
    "in_the_strides_of",
    "is_ready",
    "passes",
    "unwatched",
    "wide",
]

BACKENDS = {"cpu": "foveate.kernels.ulsam_cpu", "cuda": "foveate.kernels.ulsam_triton"}
"""Device type -> module."""

GATES = {"cuda": "foveate.kernels.gates_triton"}
"""Likewise for the gates SE and CBAM. On a CPU the plain definition serves."""

_FAMILIES = {"ulsam": BACKENDS, "gates": GATES}


@functools.cache
def is_ready(device: str, dtype: torch.dtype, family: str = "ulsam") -> bool:
    """Whether a type of device has a backend for a type of element, and it works here."""
    backends = _FAMILIES[family]
    if device not in backends:
        return False
    backend = importlib.import_module(backends[device])
    return dtype in backend.TYPES and backend.available(dtype)


_is_ready_constant = torch.compiler.assume_constant_result(is_ready.__wrapped__)


def backend_for(x: Tensor, family: str = "ulsam") -> bool:
    """Whether the fused operations take this input: a plain tensor with data, in eager mode or while it is compiled.

    What is exported or traced holds PyTorch's own operations only; so does what torch.func or forward mode transforms.
    """
    if not enabled() or type(x) is not Tensor or x.ndim != 4 or x.numel() == 0:
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting() and _is_ready_constant(x.device.type, x.dtype, family)
    if (
        torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    return is_ready(x.device.type, x.dtype, family)


def passes(x: Tensor, family: str = "ulsam") -> Any:
    """The module with the passes for the device of x."""
    name = _FAMILIES[family][x.device.type]
    return sys.modules.get(name) or importlib.import_module(name)


def wide(x: Tensor) -> torch.dtype:
    """What sums are taken in: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous in either memory format, else a copy that is, in the nearer one."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def in_the_strides_of(x: Tensor, dy: Tensor) -> Tensor:
    """dy, or a copy, in the type and the strides of x."""
    dy = dy.to(x.dtype)
    return dy if dy.stride() == x.stride() else torch.empty_like(x).copy_(dy)


def unwatched() -> bool:
    """Whether no mode, profiler or compiler follows the operations: then torch's dispatcher would only take time."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._autograd._profiler_enabled()
    )
