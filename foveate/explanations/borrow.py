"""Use the caller's model, and leave it as it was found: on success and on error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["borrowed"]


@contextmanager
def borrowed(model: nn.Module) -> Iterator[list[RemovableHandle]]:
    """Put a model into evaluation mode without gradients, and put everything back at the end.

    Each module's own ``training`` flag, the random state of the CPU and of the model's GPUs, the mode of autograd, and
    the hooks come back as they were. The flags are set directly: ``model.eval()`` would call a ``train`` that the
    model may override with side effects, and ``model.train()`` would forget which parts were frozen in evaluation mode.
    Images are to be cloned inside: a model may work in place, and a tensor made in inference mode has no gradient.

    Args:
        model: the caller's model.

    Yields:
        A list. The handles of hooks that are put into it are removed at the end.
    """
    flags = [(module, module.training) for module in model.modules()]
    gpus = sorted(
        {p.device.index or 0 for m, _ in flags for p in m._parameters.values() if p is not None and p.is_cuda}
    )
    hooks: list[RemovableHandle] = []
    with torch.random.fork_rng(devices=gpus), torch.inference_mode(False), torch.no_grad():
        try:
            for module, training in flags:
                if training:  # what is so already takes time to set, and models have hundreds of modules
                    module.training = False
            yield hooks
        finally:
            for hook in hooks:
                hook.remove()
            for module, training in flags:
                if module.training is not training:
                    module.training = training
