"""Functions in a model that refer to the model itself, made anew for its copy.

``copy.deepcopy`` takes a Python function as it is. So a function with the model in its closure, in a default or under a
global name, or one that ``torch.compile`` made of a bound method, is built again around the copy.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["DEPTH", "LENGTH", "ORIGINAL", "Functions"]

ORIGINAL = "_torchdynamo_orig_callable"  # what torch.compile made a function of
DEPTH = 4  # of containers in containers, and of functions in functions, that are looked through
LENGTH = 10_000  # of such a container: a longer one is data


def _globals_of(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """The global names that a function uses, and their values."""
    codes = [function.__code__]
    for code in codes:
        codes.extend(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
        for name in code.co_names:
            if name in function.__globals__:
                yield name, function.__globals__[name]


def _parts(value: object) -> Iterator[object]:
    """What a value holds, as far as it may reach a model."""
    if isinstance(value, types.FunctionType):
        yield getattr(value, ORIGINAL, None)
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                yield cell.cell_contents
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        yield from (held for _, held in _globals_of(value) if isinstance(held, nn.Module | Callable | Tensor))
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, list | tuple | set | dict) and len(value) <= LENGTH:
        yield from value.values() if isinstance(value, dict) else value


def _is_plain_of_library(function: types.FunctionType) -> bool:
    """A library's function, which knows the model through its closure alone, and has none."""
    library = (function.__module__ or "").partition(".")[0]
    known = bool(function.__closure__) or hasattr(function, ORIGINAL)
    return library in ("torch", "timm", "torchvision") and not known


class Functions:
    """The functions of a model that would run the model itself, made anew for its copy.

    Args:
        owned: the identities of the model's modules and tensors.
    """

    def __init__(self, owned: set[int]) -> None:
        self.owned = owned
        self.found: dict[int, types.FunctionType] = {}
        self._reaches: dict[int, bool] = {}

    def reaches(self, value: object, depth: int = 0) -> bool:
        """Whether a value leads to the model; functions on the way are written down."""
        if id(value) in self.owned:
            return True
        if depth > DEPTH or isinstance(value, type | types.ModuleType | str | int | float):
            return False
        if isinstance(value, types.FunctionType) and _is_plain_of_library(value):
            return False
        if id(value) not in self._reaches:
            self._reaches[id(value)] = False  # while it is looked at: it may hold itself
            for part in _parts(value):
                self._reaches[id(value)] |= self.reaches(part, depth + 1)
        if self._reaches[id(value)] and isinstance(value, types.FunctionType):
            self.found[id(value)] = value
        return self._reaches[id(value)]

    def made_anew(self, memo: dict[int, Any]) -> Callable[[], None]:
        """Put new functions into a memo of ``copy.deepcopy``; what is returned fills them when they all stand there."""
        made: list[tuple[types.FunctionType, types.FunctionType]] = []
        for key, old in self.found.items():
            original = getattr(old, ORIGINAL, None)
            if original is not None:  # the copy runs without torch.compile
                held: list[Any] = [original]
                memo[key] = _calls(held)
                made.append((old, memo[key]))
                continue
            cells = tuple(types.CellType() for _ in old.__closure__ or ())
            new = types.FunctionType(old.__code__, dict(old.__globals__), old.__name__, None, cells)
            new.__dict__.update({name: value for name, value in vars(old).items() if name != "__wrapped__"})
            memo[key] = new
            made.append((old, new))

        def fill() -> None:
            for old, new in made:
                if hasattr(old, ORIGINAL):
                    new.held[0] = copy.deepcopy(new.held[0], memo)  # type: ignore[attr-defined]  # set by _calls
                    continue
                for cell, other in zip(old.__closure__ or (), new.__closure__ or (), strict=True):
                    with contextlib.suppress(ValueError):
                        other.cell_contents = self._own(cell.cell_contents, memo)
                new.__defaults__ = tuple(self._own(value, memo) for value in old.__defaults__ or ()) or None
                keywords = {name: self._own(value, memo) for name, value in (old.__kwdefaults__ or {}).items()}
                new.__kwdefaults__ = keywords or None
                for name, value in _globals_of(old):
                    new.__globals__[name] = self._own(value, memo)

        return fill

    def _own(self, value: object, memo: dict[int, object]) -> object:
        return copy.deepcopy(value, memo) if self.reaches(value) else value


def _calls(held: list[Callable[..., object]]) -> Callable[..., object]:
    def eager(*args: object, **kwargs: object) -> object:
        return held[0](*args, **kwargs)

    eager.held = held  # type: ignore[attr-defined]  # for made_anew
    return eager
