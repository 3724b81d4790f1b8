"""The caller's model while it trains: everything but its weights is left as found, and on an error those too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from foveate.errors import FoveateError
from foveate.model_info import device_and_dtype
from foveate.preserve import preserve_state
from foveate.surgery.insert import attentions

__all__ = ["OutOfMemory", "memory_advice", "own_batchnorms", "restored_afterwards", "synchronised"]


def own_batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """The network's BatchNorm layers, without those of inserted attention."""
    inserted = {id(part) for mechanism in attentions(model).values() for part in mechanism.modules()}
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and id(module) not in inserted]


@contextlib.contextmanager
def restored_afterwards(model: nn.Module, device: torch.device) -> Iterator[None]:
    """A model on a device for training.

    Afterwards what ``preserve_state`` names, BatchNorm's momentum, memory format and device are again as found. After
    an error (but not after the user's interruption, who may want what was learned so far) the modules, their attributes
    and all weights are, too.
    """
    momenta = [(module, module.momentum) for module in own_batchnorms(model)]
    contiguous = all(parameter.is_contiguous() for parameter in model.parameters())
    home, _ = device_and_dtype(model)
    parts = [(module, dict(module._modules), _attributes(module)) for module in model.modules()]
    weights = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    training = model.training
    with preserve_state(model, devices=[device]):
        try:
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
            for module in model.modules():
                module.training = training  # of those that are new, such as a classifier
            for parameter in model.parameters():
                parameter.grad = None
            model.to(home)
            if contiguous:
                model.to(memory_format=torch.contiguous_format)
            for module, momentum in momenta:
                module.momentum = momentum


def _attributes(module: nn.Module) -> dict[str, object]:
    """Plain attributes, such as num_classes and pretrained_cfg; not those of nn.Module itself."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


class OutOfMemory(FoveateError):
    """There is not enough memory for a training step."""

    exit_code = 5


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "cannot allocate memory")


@contextlib.contextmanager
def memory_advice(batch_size: int) -> Iterator[None]:
    """Turn running out of memory, on the CPU or a GPU, into advice.

    Raises:
        OutOfMemory: where something inside ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(w in text for w in _NO_MEMORY):
            raise
        raise OutOfMemory(
            f"out of memory with batch_size={batch_size}: take a smaller batch_size and accumulate more of them (the "
            "step stays the same), a smaller image_size, fewer workers, cache=False, or amp='bf16'"
        ) from error


@contextlib.contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """BatchNorm layers that take their statistics over the images of all processes; the plain ones are back afterwards.

    Raises:
        FoveateError: something is hooked onto a BatchNorm layer, which would be lost.
    """
    from timm.layers import convert_sync_batchnorm

    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm)
    ]
    for _, name, child in places:
        if child._forward_hooks or child._forward_pre_hooks:
            raise FoveateError(f"sync_bn: something hangs on the BatchNorm layer {name!r}: put it after another module")
    try:
        convert_sync_batchnorm(model)
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child
