"""What a fused form asks of the module that would take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["are_as_built", "wants_gradients"]


def wants_gradients(module: Any, x: Tensor) -> bool:
    """Whether what a module gives for x has gradients.

    Args:
        module: an ``nn.Module``.
        x: its input.
    """
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))


def are_as_built(children: Mapping[str, Any], kinds: Mapping[str, type[Any]]) -> bool:
    """Whether children are of exactly these classes and nobody watches them: no hook would miss a call.

    Args:
        children: modules by name.
        kinds: their classes by name; a child without one is not as built.
    """
    for name, child in children.items():
        if type(child) is not kinds.get(name):
            return False
        own = child.__dict__  # asked in each forward pass: a lookup in it is half of one by attribute
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            return False
    return True
