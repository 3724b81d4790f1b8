"""Prepare a network for inference: what can be worked out before the first image is worked out once."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from foveate.attention.ulsam import ULSAM
from foveate.errors import FoveateError

__all__ = ["fuse"]

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model) -> Model:
    """Fold the batch norms of every ULSAM in a model into the vectors that its kernel reads, for inference.

    The outputs stay the same up to rounding. Parameters, statistics and the keys of the state dict stay as they are;
    each ULSAM gets a buffer ``folded`` that is not saved. The model can be exported, compiled and copied as before, and
    an exported graph has fewer operations. Only when x itself needs a gradient are the parameters used.

    ``model.train()`` and ``load_state_dict`` discard what was prepared; whoever changes a parameter in another way
    calls ``fuse`` again.

    Args:
        model: a network in eval mode. It is changed in place.

    Returns:
        The model.

    Raises:
        FoveateError: The model, or a part of it, is in training mode.
    """
    modules = [module for module in model.modules() if isinstance(module, ULSAM)]
    if any(part.training for module in modules for part in module.modules()) or model.training:
        raise FoveateError(
            "fuse prepares a model for inference, and this one is in training mode: call model.eval() first"
        )
    for module in modules:
        module.fuse()
    return model
