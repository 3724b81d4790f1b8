"""Which module has the passes for a device, and whether an input can take them.

ULSAM's backends are modules with the functions of ``ulsam.cpu``, those of the gates with the functions of
``gates.triton_launch``; another device is one line in ``BACKENDS`` or in ``GATES``.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler

from foveate.kernels.switch import enabled

__all__ = [
    "BACKENDS",
    "GATES",
    "PLAIN",
    "backend_for",
    "dense",
    "in_the_strides_of",
    "is_exporting",
    "is_ready",
    "passes",
    "unwatched",
    "wide",
]

BACKENDS = {"cpu": "foveate.kernels.ulsam.cpu", "cuda": "foveate.kernels.ulsam.triton_launch"}
"""Device type -> module."""

GATES = {"cuda": "foveate.kernels.gates.triton_launch"}
"""Likewise for the gates SE and CBAM. On a CPU the plain definition serves."""

PLAIN = (Tensor, torch.nn.Parameter)
"""Classes of tensors whose data can be read past torch."""

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


@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Whether torch.export traces this. torch 2.11 says so of torch.compile, too, where it is not asked outside."""
    return torch.compiler.is_exporting()


# Bound here, and asked in this order: between large tensors the interpreter's own memory is out of the caches, and each
# name that is looked up, each object that is made costs a fetch of its own. So does a device's name.
_is_compiling = torch.compiler.is_dynamo_compiling  # what torch.export traces otherwise is no plain tensor
_is_tracing = torch._C._is_tracing
_transform = torch._C._functorch.peek_interpreter_stack
_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack


def _kind_of(x: Tensor) -> str:
    """The type of its device."""
    return "cpu" if x.is_cpu else x.device.type


def backend_for(x: Tensor, family: str = "ulsam") -> bool:
    """Whether the fused operations take this input: a plain tensor with data, in eager mode or while it is compiled.

    What is exported or traced holds PyTorch's own operations only; so does what torch.func or forward mode transforms.
    """
    if not enabled() or type(x) is not Tensor:
        return False
    if _is_compiling():
        if x.ndim != 4 or x.numel() == 0 or is_exporting():
            return False
        return _is_ready_constant(x.device.type, x.dtype, family)
    if _is_tracing() or _transform() is not None or forward_ad._current_level >= 0:
        return False
    shape = x.shape
    return len(shape) == 4 and 0 not in shape and is_ready(_kind_of(x), x.dtype, family)


def passes(x: Tensor, family: str = "ulsam") -> Any:
    """The module with the passes for the device of x."""
    name = _FAMILIES[family][_kind_of(x)]
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
    return not (_is_compiling() or _modes() or _function_modes() or profiler._is_profiler_enabled)
