"""When SE, CBAM, BAM and timm's ECA take the passes of ``foveate.kernels.gates.op`` instead of their definition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.kernels.dispatch import GATES, Built, Choice, choose, wants_gradients

__all__ = ["choose_gates", "layers_of", "use_fused_path"]

_NOT_HERE = Choice("", "there is no backend for this device")
_COMPILED = Choice("", "torch.compile joins the steps of the definition with the layers around them")
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


def use_fused_path(module: nn.Module, x: Tensor, built: Built) -> bool:
    """Whether ``choose_gates`` has a backend."""
    return bool(choose_gates(module, x, built).backend)


def layers_of(module: nn.Module) -> tuple[Tensor | None, ...]:
    """Weight and bias of ``fc1`` and ``fc2``, as they are now."""
    first, second = (module._modules[name]._parameters for name in ("fc1", "fc2"))  # type: ignore[union-attr]  # as built
    return first.get("weight"), first.get("bias"), second.get("weight"), second.get("bias")
