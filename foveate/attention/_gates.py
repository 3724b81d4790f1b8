"""When SE and CBAM take the passes of ``foveate.kernels.gates.op`` instead of their definition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from foveate.kernels.children import are_as_built, wants_gradients
from foveate.kernels.dispatch import GATES, backend_for

__all__ = ["in_passes"]


def in_passes(module: nn.Module, x: Tensor, kinds: Mapping[str, type[nn.Module]]) -> bool:
    """Whether a module infers in passes: in eval mode without gradients, on a device with a backend, as built.

    Under ``torch.compile`` the definition serves: the compiler joins its passes with each other and with the layers
    around them.

    Args:
        module: SE or CBAM.
        x: what it gets.
        kinds: the children that go with passes, name -> exact class.
    """
    if x.device.type not in GATES or torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    if module.training or not backend_for(x, "gates"):
        return False
    return not wants_gradients(module, x) and are_as_built(dict(module.named_children()), kinds)
