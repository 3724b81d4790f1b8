"""The caller's model, lent for training: everything but its weights is left as found, and on an error those too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from foveate.errors import FoveateError
from foveate.surgery.insert import attentions

__all__ = ["accelerated", "kept_random", "lent", "own_batchnorms"]


@contextlib.contextmanager
def kept_random() -> Iterator[None]:
    """The global random numbers of torch go on afterwards as if nothing had been drawn inside."""
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        yield


def own_batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """The network's BatchNorm layers, without those of inserted attention."""
    inserted = {id(part) for mechanism in attentions(model).values() for part in mechanism.modules()}
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and id(module) not in inserted]


@contextlib.contextmanager
def lent(model: nn.Module, device: torch.device) -> Iterator[None]:
    """A model on a device for training.

    Afterwards modes, gradients, BatchNorm's momentum, memory format and device are again as found. After an error
    (but not after the user's interruption, who may want what was learned so far) the modules, their attributes and
    all weights are, too.
    """
    modes = {id(module): module.training for module in model.modules()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    momenta = [(module, module.momentum) for module in own_batchnorms(model)]
    contiguous = all(parameter.is_contiguous() for parameter in model.parameters())
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    parts = [(module, dict(module._modules), _attributes(module)) for module in model.modules()]
    weights = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        model.to(device)
        yield
    except Exception:
        for module, children, attributes in parts:
            module._modules.clear()
            module._modules.update(children)
            for name in _attributes(module).keys() - attributes.keys():
                delattr(module, name)
            module.__dict__.update(attributes)
        model.load_state_dict(weights)
        raise
    finally:
        model.to(home)
        if contiguous:
            model.to(memory_format=torch.contiguous_format)
        for module, momentum in momenta:
            module.momentum = momentum
        for module in model.modules():
            module.training = modes.get(id(module), model.training)
        for parameter in model.parameters():
            parameter.grad = None
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Plain attributes, such as num_classes and pretrained_cfg; not those of nn.Module itself."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


@contextlib.contextmanager
def accelerated(precision: str) -> Iterator[Any]:
    """An ``Accelerator`` for one process; Accelerate's global state is gone afterwards unless it was there before.

    Raises:
        FoveateError: the device cannot do this precision, there are several processes, or the program uses
            Accelerate itself with another precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState, is_initialized

    # Read from the environment: on a CPU, Accelerate ignores a launcher and runs every process for itself.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise FoveateError(
            f"this program runs in {processes} processes, and fit trains in one: start it without torchrun"
        )
    found = is_initialized()
    found_partial = bool(PartialState._shared_state)
    try:
        try:
            accelerator = Accelerator(mixed_precision=precision)
            if precision != "no" and not accelerator.native_amp:  # on a CPU, Accelerate takes fp16 and does nothing
                raise ValueError(f"a {accelerator.device.type} does not train with it")
        except (ValueError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise FoveateError(f"amp={precision!r} is not possible here: {reason}; take amp='no'") from error
        yield accelerator
    finally:
        if not found:
            AcceleratorState._reset_state(reset_partial_state=not found_partial)
