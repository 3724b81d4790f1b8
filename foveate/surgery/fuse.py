"""Prepare a network for inference: what can be done before the first image is done now."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from foveate.errors import FoveateError
from foveate.kernels.dispatch import enabled, ready

__all__ = ["fuse"]

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model) -> Model:
    """Compile the kernels that a model's attention will use, before the first image, for inference.

    Batch norms are folded inside the kernel, in every pass, from the parameters and statistics as they are at that
    moment. Nothing that was folded is kept, so no later change of a weight can be missed, however it is made: in place,
    through ``.data``, by ``load_state_dict``, ``torch.func.functional_call`` or an exchange with averaged weights.
    Parameters, outputs and the keys of the state dict stay as they are.

    Args:
        model: a network in eval mode.

    Returns:
        The model.

    Raises:
        FoveateError: The model, or a part of its attention, is in training mode.
    """
    modules = [module for module in model.modules() if hasattr(module, "kernel_family")]
    if any(part.training for module in modules for part in module.modules()) or model.training:
        raise FoveateError(
            "fuse prepares a model for inference, and this one is in training mode: call model.eval() first"
        )
    for module in modules if enabled() else ():
        for parameter in module.parameters():
            ready(parameter.device.type, parameter.dtype, str(module.kernel_family))
            break
    return model
