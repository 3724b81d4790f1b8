"""Use a caller's model and leave it as it was found, on success and on error."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["preserve_state"]


@contextlib.contextmanager
def preserve_state(
    *models: nn.Module,
    evaluation: bool = False,
    no_grad: bool = False,
    buffers: bool = False,
    devices: Iterable[torch.device] = (),
) -> Iterator[list[RemovableHandle]]:
    """Put everything that a study may disturb back as it was, on success and on error.

    Always: each module's own ``training`` flag, each parameter's ``requires_grad`` and ``grad`` (inside, all gradients
    are None, so that nothing is added to them), and the random numbers of Python, NumPy and torch, on the CPU and on
    the models' devices.

    The flags are set directly: ``model.eval()`` would call a ``train`` that the model may override with side effects,
    and ``model.train()`` would forget which parts were frozen in evaluation mode. The models' devices and the values of
    the parameters are the caller's concern.

    Args:
        models: the caller's models; none for the random numbers alone.
        evaluation: every module is in evaluation mode inside.
        no_grad: nothing is recorded for a backward pass inside, and the caller's mode of autograd, inference mode
            included, comes back. Images are to be cloned inside: a model may work in place, and a tensor made in
            inference mode has no gradient.
        buffers: the values of all buffers, such as the running statistics of BatchNorm, come back, too.
        devices: whose random numbers are kept, besides those of the models' own devices.

    Yields:
        A list. The handles of hooks that are put into it are removed at the end.
    """
    modules = list(dict.fromkeys(module for model in models for module in model.modules()))
    modes = [(module, module.training) for module in modules]
    parameters = list({id(p): p for module in modules for p in module._parameters.values() if p is not None}.values())
    required = [(parameter, parameter.requires_grad) for parameter in parameters]
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    values = [
        (module, name, value, value.detach().clone())
        for module in (modules if buffers else ())
        for name, value in module._buffers.items()
        if value is not None
    ]
    handles: list[RemovableHandle] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_random_numbers({*devices, *(parameter.device for parameter in parameters)}))
        if no_grad:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        try:
            for parameter, gradient in gradients:
                if gradient is not None:
                    parameter.grad = None
            for module, training in modes if evaluation else ():
                if training:  # what is so already takes time to set, and models have hundreds of modules
                    module.training = False
            yield handles
        finally:
            for handle in handles:
                handle.remove()
            for module, training in modes:
                if module.training is not training:
                    module.training = training
            _put_back(values)
            for parameter, requires in required:
                if parameter.requires_grad is not requires:
                    parameter.requires_grad_(requires)
            for parameter, gradient in gradients:
                if parameter.grad is not gradient:
                    parameter.grad = gradient


def _put_back(values: list[tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for module, name, buffer, value in values:
            buffer.copy_(value)  # in place: others may hold the same tensor
            module._buffers[name] = buffer


@contextlib.contextmanager
def _random_numbers(devices: Iterable[torch.device]) -> Iterator[None]:
    """The random numbers of Python, NumPy, the CPU and some devices go on afterwards as if none had been drawn."""
    kinds: dict[str, set[int]] = defaultdict(set)
    for device in devices:
        if device.type not in ("cpu", "meta", "mps"):  # MPS does not take part in torch's fork_rng
            kinds[device.type].add(device.index or 0)
    python, numpy = random.getstate(), np.random.get_state()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, indices in kinds.items():
            stack.enter_context(torch.random.fork_rng(devices=sorted(indices), device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
