"""Count operation by operation, each for the module that it runs in, in one pass.

Every operation that reaches the dispatcher is looked up in the tables of ``formulas`` and ``products``. What is made of
other operations is taken apart by the dispatcher before, so nothing counts twice.
"""

# torch does not annotate TorchDispatchMode's constructor, nor __init_subclass__.
# mypy: allow-untyped-calls

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.accounting.counting.allocations import LiveMemory, model_storages
from foveate.accounting.counting.formulas import Rule, rule_of, tensors_in, traffic
from foveate.accounting.counting.forward import images_for, quick_output, run
from foveate.accounting.counting.products import Arguments, Keywords

__all__ = ["OperationCount", "count_operations"]

logger = logging.getLogger("foveate")
_logged: set[str] = set()
# What takes the numbers out of torch. Nothing is seen of what is computed with them.
_WAYS_OUT = {
    getattr(torch.Tensor, name): f"Tensor.{name} (what NumPy and others compute)"
    for name in ("numpy", "__array__", "__dlpack__")
}
_OTHER_THREAD = "operations in another thread"


@dataclass
class OperationCount:
    """What runs in one module.

    Args:
        macs: multiply-adds.
        activations: elements that matrix products, convolutions and attention products write.
        element_ops: element operations, see ``formulas``.
        bytes_read: inputs of the operations, parameters among them.
        bytes_written: outputs of the operations.
        peak_bytes: of live memory, without parameters and buffers; of the whole model alone.
        unsupported: unsupported operations, which have no formula.
    """

    macs: int = 0
    activations: int = 0
    element_ops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_bytes: int = 0
    unsupported: set[str] = field(default_factory=set)

    def add(self, other: OperationCount) -> None:
        """Take in what runs in a part."""
        self.macs += other.macs
        self.activations += other.activations
        self.element_ops += other.element_ops
        self.bytes_read += other.bytes_read
        self.bytes_written += other.bytes_written
        self.unsupported |= other.unsupported


class _Counter(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.counts = {name: OperationCount() for name, _ in model.named_modules()}
        self.stack = [""]
        self.thread = threading.get_ident()
        self.live = LiveMemory(model_storages(model))
        self.rules: dict[object, Rule] = {}

    def enter(self, name: str, *_: object) -> None:
        """A module begins. In another thread this counter sees none of its operations."""
        self.stack.append(name)
        if threading.get_ident() != self.thread:
            self.counts[name].unsupported.add(_OTHER_THREAD)

    def leave(self, *_: object) -> None:
        """The module that began last ends."""
        self.stack.pop()

    def __torch_dispatch__(
        self, func: Any, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        rule = self.rules.get(func) or self.rules.setdefault(func, rule_of(func))
        if rule.composite:  # as in torch.inference_mode, where the dispatcher leaves this to us
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = quick_output(rule.name, args)
        if result is None:
            result = func(*args, **kwargs)
        count = self.counts[self.stack[-1]]
        if next(tensors_in([args, result], dense=False), None) is not None:  # the formulas are those of dense tensors
            count.unsupported.add(f"{rule.name} (sparse or nested)")
        else:
            self._count(count, rule, args, kwargs, result)
        read, written = traffic(rule, args, kwargs, result)
        count.bytes_read += read
        count.bytes_written += written
        self.live.track(tensors_in([result]))
        return result

    @staticmethod
    def _count(count: OperationCount, rule: Rule, args: Arguments, kwargs: Keywords, result: object) -> None:
        if rule.macs is not None:
            count.macs += rule.macs(args, kwargs, result)
            count.activations += next(tensors_in([result])).numel()
        elif rule.product:  # whatever is known of its element operations
            count.unsupported.add(rule.name)
        if rule.element_ops is not None:
            count.element_ops += rule.element_ops(args, kwargs, result)
        elif next(tensors_in(args), None) is not None:  # without a tensor it makes one
            count.unsupported.add(rule.name)


class _WaysOut(TorchFunctionMode):
    """Names what leaves torch as unsupported, in the module that it happens in."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        if func in _WAYS_OUT:
            self.counter.counts[self.counter.stack[-1]].unsupported.add(_WAYS_OUT[func])
        return func(*args, **(kwargs or {}))


def count_operations(model: nn.Module, size: tuple[int, int, int], *, fused: bool = False) -> dict[str, OperationCount]:
    """Run a model once on one image of zeros and count.

    Args:
        model: a copy in eval mode, best on the meta device, where tensors have shapes and no data.
        size: (channels, height, width) of the image.
        fused: count what inference runs with fused operations, and not the plain definitions: of the whole model alone,
            for a module that has hooks computes its definition.

    Returns:
        For each module by dotted name what runs in it and in its parts; "" is the whole model. What runs in a part
        without hooks counts for what contains it.

    Raises:
        Exception: whatever the model raises.
    """
    counter = _Counter(model)
    handles = []
    for name, module in model.named_modules():
        if name and not fused and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            # Around everything that belongs to the module, the hook that calls its attention included. A module that
            # fails is left, too: what contains it may go on.
            enter = functools.partial(counter.enter, name)
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(counter.leave, always_call=True))
    images = images_for(model, size)
    counter.live.track([images])
    try:
        with torch.no_grad(), counter, _WaysOut(counter):
            run(model, images, fused=fused)
    finally:
        for handle in handles:
            handle.remove()
    counts = counter.counts
    for name in reversed(counts):  # parts stand behind what they are part of
        if name:
            counts[name.rpartition(".")[0]].add(counts[name])
    counts[""].peak_bytes = counter.live.peak
    _log_unsupported(counts[""].unsupported)
    return counts


def _log_unsupported(unsupported: set[str]) -> None:
    """Name each unsupported operation once."""
    new = sorted(unsupported - _logged)
    if new:
        _logged.update(new)
        logger.warning("unsupported operations, which are not counted: %s", ", ".join(new))
