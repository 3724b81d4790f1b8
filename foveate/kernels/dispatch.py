"""Which backend computes an operation, and why none does: ``choose`` for one call, ``backends`` for the machine.

A backend is a module: ULSAM's have the functions of ``ulsam.cpu``, those of the gates the functions of
``gates.triton_launch``. Another device is one line in ``BACKENDS`` or in ``GATES``.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler

from foveate.kernels.as_built import Built, modification
from foveate.kernels.registration import unregistered

__all__ = [
    "BACKENDS",
    "GATES",
    "PLAIN",
    "Built",
    "Choice",
    "backends",
    "choose",
    "dense",
    "enabled",
    "into_a_graph",
    "is_batched",
    "is_eager",
    "is_exporting",
    "is_followed",
    "is_transformed",
    "modification",
    "no_active_modes",
    "passes",
    "ready",
    "use_fused",
    "wants_gradients",
    "wide",
]

BACKENDS = {"cpu": "foveate.kernels.ulsam.cpu", "cuda": "foveate.kernels.ulsam.triton_launch"}
"""Device type -> module, for ULSAM."""

GATES = {"cpu": "foveate.kernels.gates.cpu", "cuda": "foveate.kernels.gates.triton_launch"}
"""Likewise for the gates: SE and CBAM; on a CPU BAM and timm's ECA, too."""

PLAIN = (Tensor, torch.nn.Parameter)
"""Classes of tensors whose data can be read past torch."""

_FAMILIES = {"ulsam": BACKENDS, "gates": GATES}


# ---- the switch ----

_on = os.environ.get("FOVEATE_FUSED", "1").strip().lower() not in ("0", "false", "no", "off")


class _Previous(int):
    """The setting before: a truth value, and a context that brings it back."""

    def __enter__(self) -> _Previous:
        return self

    def __exit__(self, *_: object) -> None:
        use_fused(bool(self))

    def __repr__(self) -> str:
        return repr(bool(self))


def use_fused(on: bool = True) -> _Previous:
    """Let the attention modules take fused operations where there are some, or not.

    Args:
        on: False: every attention module computes its plain definition in PyTorch.

    Returns:
        The setting before, as a truth value. Used in a ``with`` statement it comes back at the end::

            foveate.use_fused(False)              # from here on
            with foveate.use_fused(False): ...    # in this block

    The environment variable ``FOVEATE_FUSED=0`` does the same from the start. The setting is one for all threads.
    """
    global _on
    previous, _on = _on, bool(on)
    return _Previous(previous)


def enabled() -> bool:
    """Whether fused operations may be used."""
    return _on


# ---- the choice ----


class Choice(NamedTuple):
    """The backend of a call, or the reason why the plain definition serves."""

    backend: str
    """The name of its module; empty: there is none."""
    reason: str = ""
    """Why there is none, as the end of a sentence."""


_OFF = Choice("", "fused operations are switched off, by use_fused(False) or FOVEATE_FUSED=0")
_SUBCLASS = Choice("", "the input is not a plain tensor")
_SHAPE = Choice("", "the input is empty, or not of the shape (B, C, h, w)")
_EXPORTED = Choice("", "the model is being exported or traced, and a graph holds PyTorch's own operations only")
_TRANSFORMED = Choice("", "a transform of torch.func or forward-mode differentiation is active")
_COMPILED = Choice("torch.ops.foveate")  # torch.compile calls the operation, which finds its backend
_NOT_READY = Choice("", "there is no backend for this device and type of element")


@functools.cache
def ready(device: str, dtype: torch.dtype, family: str = "ulsam") -> Choice:
    """The backend for a type of device and a type of element, tried at the first call.

    Args:
        device: such as ``cpu``.
        dtype: of the images.
        family: ``ulsam`` or ``gates``.
    """
    names = _FAMILIES[family]
    if family in unregistered:
        return Choice("", unregistered[family])
    if device not in names:
        return Choice("", f"there is no backend for {device}, only for {', '.join(names)}")
    backend = importlib.import_module(names[device])
    if dtype not in backend.TYPES:
        takes = ", ".join(map(_short, backend.TYPES))
        return Choice("", f"the backend for {device} takes {takes}, not {_short(dtype)}")
    reason = backend.why_not(dtype)
    return Choice("", reason) if reason else Choice(names[device])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_constant_in_graphs: Callable[[Callable[..., bool]], Callable[..., bool]] = torch.compiler.assume_constant_result


@_constant_in_graphs
def _has_backend(device: str, dtype: torch.dtype, family: str) -> bool:
    return bool(ready.__wrapped__(device, dtype, family).backend)


@_constant_in_graphs
def is_exporting() -> bool:
    """Whether torch.export traces this. torch 2.11 says so of torch.compile, too, where it is not asked outside."""
    return torch.compiler.is_exporting()


# Bound here, and asked in this order: between large tensors the interpreter's own memory is out of the caches, and each
# name that is looked up, each object that is made costs a fetch of its own. So does a device's name.
_is_compiling = torch.compiler.is_dynamo_compiling  # what torch.export traces otherwise is not a plain tensor
_is_tracing, _transform = torch._C._is_tracing, torch._C._functorch.peek_interpreter_stack
_is_one_of_several = torch._C._functorch.is_legacy_batchedtensor
_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack


def into_a_graph() -> bool:
    """Whether torch.export or a trace writes down what runs: converters know fewer operations than torch."""
    return is_exporting() or (not _is_compiling() and _is_tracing())


def _type_of_device(x: Tensor) -> str:
    return "cpu" if x.is_cpu else x.device.type


def choose(x: Tensor, family: str = "ulsam", module: object = None, built: Built | None = None) -> Choice:
    """The backend that computes a module's operation for an input, or why none does: then the plain definition serves.

    A backend takes a plain tensor with data, in eager mode or while it is compiled. What is exported or traced holds
    PyTorch's own operations only; so does what torch.func or forward mode transforms.

    Args:
        x: the input.
        family: ``ulsam`` or ``gates``.
        module: the ``nn.Module`` that is called; None: only the input is looked at.
        built: how it was built. The backend would call none of its children, so a hook on one, or another module in its
            place, leaves the call to the definition.
    """
    if not _on:
        return _OFF
    if type(x) is not Tensor:
        return _SUBCLASS
    if _is_compiling():
        if x.ndim != 4 or x.numel() == 0:
            return _SHAPE
        if is_exporting():
            return _EXPORTED
        choice = _COMPILED if _has_backend(x.device.type, x.dtype, family) else _NOT_READY
    elif _is_tracing():
        return _EXPORTED
    elif _transform() is not None or forward_ad._current_level >= 0:
        return _TRANSFORMED
    else:
        shape = x.shape
        if len(shape) != 4 or 0 in shape:
            return _SHAPE
        choice = ready(_type_of_device(x), x.dtype, family)
    if built is not None and choice.backend and (reason := modification(module, built)):
        return Choice("", reason)
    return choice


def wants_gradients(module: Any, x: Tensor) -> bool:
    """Whether what a module gives for x has gradients.

    Args:
        module: an ``nn.Module``.
        x: its input.
    """
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))


def is_transformed() -> bool:
    """Whether a transform of torch.func runs: then what is computed belongs to it, and is not to be kept."""
    return not _is_compiling() and _transform() is not None


def is_batched(x: Tensor) -> bool:
    """Whether a tensor stands for several at once: of torch.func.vmap, or of gradients asked for together.

    Args:
        x: such as the gradient that ``torch.autograd.grad(..., is_grads_batched=True)`` passes on.
    """
    return is_transformed() or (not _is_compiling() and _is_one_of_several(x))


def no_active_modes() -> bool:
    """Whether no mode, profiler or compiler follows the operations: then torch's dispatcher would only take time."""
    return not (_is_compiling() or _modes() or _function_modes() or profiler._is_profiler_enabled)


def is_eager() -> bool:
    """Whether what runs is computed: neither compiled, nor traced, nor transformed by anything but autograd."""
    return not (_is_compiling() or _is_tracing()) and _transform() is None and forward_ad._current_level < 0


def is_followed() -> bool:
    """Whether a mode of torch's sees each operation, as one that counts them module by module does."""
    return bool(_modes() or _function_modes())


def backends() -> list[tuple[str, str, str, Choice]]:
    """What this machine has: operations, device type, type of element, and the backend or why there is none.

    Compiles or loads what is not loaded yet. Device types that this machine lacks are listed too, with the reason.
    """
    rows = []
    for family, names in _FAMILIES.items():
        for device, name in names.items():
            for dtype in importlib.import_module(name).TYPES:
                choice = ready(device, dtype, family) if _on else _OFF
                rows.append((family, device, _short(dtype), choice))
    return rows


# ---- for the operations ----


def passes(x: Tensor, family: str = "ulsam") -> Any:
    """The module with the passes for the device of x."""
    name = _FAMILIES[family][_type_of_device(x)]
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
