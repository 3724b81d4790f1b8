"""Count multiply-adds operation by operation, each for the modules that it runs in.

Every operation that reaches the dispatcher is looked up in a table from operation to formula: torch's own
(``torch.utils.flop_counter``), which covers convolutions, matrix products and attention products. It counts a
multiply-add as two; here it is one MAC. Limits: element-wise operations, normalisation and pooling count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from foveate.surgery.probe import run_once

__all__ = ["Tally", "tally"]


@dataclass
class Tally:
    """MACs, and the elements that the counted operations write."""

    macs: int = 0
    activations: int = 0


class _Counter(TorchDispatchMode):
    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.tallies = {name: Tally() for name in names}
        self.stack: list[str] = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            macs = formula(*args, **kwargs, out_val=result) // 2
            elements = (result if isinstance(result, Tensor) else result[0]).numel()
            for name in self.stack:
                self.tallies[name].macs += macs
                self.tallies[name].activations += elements
        return result


def tally(model: nn.Module, size: tuple[int, int, int]) -> dict[str, Tally]:
    """Run a model once on one image of zeros and count.

    Args:
        model: a copy in eval mode, best a skeleton, whose tensors have shapes and no data.
        size: (channels, height, width) of the image.

    Returns:
        For each module by dotted name what runs in it, its parts included; "" is the whole model.

    Raises:
        Exception: whatever the model raises.
    """
    counter = _Counter(name for name, _ in model.named_modules())
    handles = []
    for name, module in model.named_modules():
        if name:
            enter = lambda _module, _args, name=name: counter.stack.append(name)  # noqa: E731
            leave = lambda _module, _args, _output: counter.stack.pop() and None  # noqa: E731
            # Around everything that belongs to the module, the hook that calls its attention included.
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(leave))
    try:
        with counter:
            run_once(model, size)
    finally:
        for handle in handles:
            handle.remove()
    return counter.tallies
