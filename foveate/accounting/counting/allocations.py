"""Live memory: the bytes of the tensors that exist, from the weak references of their storages."""

# torch does not annotate TorchDispatchMode's constructor, nor __init_subclass__.
# mypy: allow-untyped-calls

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.accounting.counting.formulas import is_dense, rule_of, tensors_in
from foveate.accounting.counting.forward import quick_output
from foveate.accounting.counting.products import Arguments, Keywords

__all__ = ["LiveMemory", "LiveMemoryMode", "model_storages"]


def model_storages(model: nn.Module) -> dict[int, int]:
    """The bytes of each storage of the parameters and buffers, by the storage's address."""
    tensors = filter(is_dense, (*model.parameters(), *model.buffers()))
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


class LiveMemory:
    """The live memory of a pass in bytes, and its peak. A storage that several tensors share counts once.

    Args:
        leave_out: addresses of storages that do not count.
    """

    def __init__(self, leave_out: Iterable[int] = ()) -> None:
        self.now = self.peak = 0
        self._leave_out = frozenset(leave_out)
        self._live: dict[int, weakref.ref[object]] = {}

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of tensors from now until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address in self._live or address in self._leave_out:
                continue
            size = storage.nbytes()
            self._live[address] = weakref.ref(storage, functools.partial(self._freed, address, size))
            self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, address: int, size: int, _reference: object) -> None:
        del self._live[address]
        self.now -= size


class LiveMemoryMode(TorchDispatchMode):
    """While it is active, what operations give is tracked by a ``LiveMemory``."""

    def __init__(self, live: LiveMemory) -> None:
        super().__init__()
        self.live = live

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        result = quick_output(rule_of(func).name, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        self.live.track(tensors_in([result]))
        return result
