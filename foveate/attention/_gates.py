"""When SE, CBAM, BAM and timm's ECA take the passes of ``foveate.kernels.gates.op`` instead of their definition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.kernels.dispatch import GATES, PLAIN, Built, Choice, choose, dense, no_active_modes, wants_gradients

__all__ = ["choose_gates", "layers_of", "trains_in_passes", "use_fused_path"]

_NOT_HERE = Choice("", "there is no backend for this device")
_COMPILED = Choice("", "torch.compile joins the steps of the definition with the layers around them")
_TRAINED_ELEMENTS = 1 << 20  # with fewer the definition is faster: benchmarks/mechanisms.py
_TRAINING = Choice("", "the module is in training mode, or its output wants gradients")


def choose_gates(module: nn.Module, x: Tensor, built: Built) -> Choice:
    """The backend with which a module infers, or why there is none: in eval mode without gradients, as it was built.

    Args:
        module: SE, CBAM, BAM or timm's ECA.
        x: its input.
        built: how it was built.
    """
    if x.device.type not in GATES:
        return _NOT_HERE
    if torch.compiler.is_compiling():
        return _COMPILED
    choice = choose(x, "gates", module, built)
    return _TRAINING if choice.backend and (module.training or wants_gradients(module, x)) else choice


def trains_in_passes(module: nn.Module, x: Tensor, built: Built) -> bool:
    """Whether SE takes ``foveate.kernels.gates.excitation`` for x.

    So it is where only gradients keep it from the passes of inference, in float32, in plain eager mode on a CPU, and
    where maps are so large that reading them takes longer than calling the steps from Python.
    """
    if choose_gates(module, x, built) is not _TRAINING or not x.is_cpu or x.dtype is not torch.float32:
        return False
    if x.numel() < _TRAINED_ELEMENTS:
        return False
    if not torch.is_grad_enabled() or not no_active_modes() or torch.is_autocast_enabled("cpu") or dense(x) is not x:
        return False
    first, bias, second, other = layers_of(module)
    if first is None or second is None:
        return False
    hidden, channels = first.shape[0], x.shape[1]
    sizes = ((first, (hidden, channels)), (bias, (hidden,)), (second, (channels, hidden)), (other, (channels,)))
    return all(
        t is None or (type(t) in PLAIN and t.dtype is x.dtype and t.is_cpu and tuple(t.shape) == size)
        for t, size in sizes
    )


def use_fused_path(module: nn.Module, x: Tensor, built: Built) -> bool:
    """Whether ``choose_gates`` has a backend."""
    return bool(choose_gates(module, x, built).backend)


def layers_of(module: nn.Module) -> tuple[Tensor | None, ...]:
    """Weight and bias of ``fc1`` and ``fc2``, as they are now."""
    first, second = (module._modules[name]._parameters for name in ("fc1", "fc2"))  # type: ignore[union-attr]  # as built
    return first.get("weight"), first.get("bias"), second.get("weight"), second.get("bias")
