"""The memory that training takes: what autograd saves for backward, and the peak of a training step.

Both are read off a pass of a copy without data. Left out is what the allocator keeps or rounds up, and what a kernel
takes for itself, as oneDNN's convolutions do for another layout of their inputs.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from foveate.accounting.counting.allocations import LiveMemory, LiveMemoryMode, model_storages
from foveate.accounting.counting.forward import images_for, network_of, run, total
from foveate.errors import FoveateError, first_line
from foveate.surgery.model_copy import on_a_copy
from foveate.surgery.trace import input_size_of

__all__ = ["saved_bytes", "training_memory"]

logger = logging.getLogger("foveate")


def saved_bytes(model: nn.Module, size: tuple[int, int, int]) -> int:
    """Bytes that autograd saves for the backward pass of one image, without parameters and buffers.

    A tensor that several operations save counts once. What the backward pass needs depends on what is trained: a
    frozen network saves nothing.

    Args:
        model: a copy, in the mode to be counted.
        size: (channels, height, width) of the image.

    Raises:
        Exception: whatever the model raises.
    """
    own = model_storages(model)
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    with torch.enable_grad(), LiveMemoryMode(LiveMemory()), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run(model, images_for(model, size))
    return sum(storage.nbytes() for storage in saved.values())


def training_memory(
    model: nn.Module,
    batch_size: int,
    input_size: int | tuple[int, ...] | None = None,
    *,
    optimizer_tensors: int = 0,
) -> int:
    """Predict the peak memory of a training step, in bytes.

    The peak of parameters, buffers, gradients, and the live memory of a forward and a backward pass, each tensor freed
    when nothing refers to it any more. The step starts without gradients, as after ``zero_grad()``.

    Args:
        model: left as found. It is counted in training mode; frozen parameters take no gradient.
        batch_size: images of a step.
        input_size: a side, (height, width) or (channels, height, width) in pixels; without it the model's own.
        optimizer_tensors: how many tensors of a parameter's size the optimiser keeps for it: 0 for plain SGD, 1 with
            momentum, 2 for Adam.

    Raises:
        FoveateError: a number is out of range, or the model cannot be trained on images of this size.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("optimizer_tensors", optimizer_tensors, 0)):
        if type(value) is not int or value < least:
            raise FoveateError(f"{name}={value!r}: write a whole number of at least {least}")
    model = network_of(model)
    size = input_size_of(model, input_size)

    def task(net: nn.Module) -> int:
        net.train()
        own = model_storages(net)
        live = LiveMemory(own)
        images = images_for(net, size, batch_size)
        live.track([images])
        with torch.enable_grad(), LiveMemoryMode(live):
            torch.autograd.backward(total(run(net, images)))
        trained = [p for p in net.parameters() if p.requires_grad]
        state = optimizer_tensors * sum(p.numel() * p.element_size() for p in trained)
        return sum(own.values()) + state + live.peak

    try:
        with torch.inference_mode(mode=False):  # where autograd keeps nothing
            return on_a_copy(model, task)[0]
    except FoveateError:
        raise
    except Exception as error:
        raise FoveateError(
            f"cannot count a training step of {type(model).__name__} on {batch_size} images of "
            f"{size[0]} x {size[1]} x {size[2]} (channels x height x width): {first_line(error)}"
        ) from error
