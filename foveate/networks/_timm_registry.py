"""timm's ``register_model`` as a decorator that keeps a function's type; timm's own returns any callable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import timm.models
from torch import nn

__all__ = ["register_model"]

EntryPoint = TypeVar("EntryPoint", bound=Callable[..., nn.Module])

register_model: Callable[[EntryPoint], EntryPoint] = timm.models.register_model
