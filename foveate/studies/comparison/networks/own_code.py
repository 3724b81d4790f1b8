"""A user's own code as a digest: a mechanism or a network whose code has changed is another one.

The source of functions is read, of classes that of their methods; with it the classes that they derive from, and the
functions, classes and values (numbers, text, arrays, lists and dictionaries of them) that they name. What comes with
Python or as an installed package is not followed, and foveate, timm and torch are left out: a result says with which
versions it was made.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from foveate.model_info import compiled_text, value_text

__all__ = ["OwnCode", "own_code"]

_OURS = ("foveate", "timm", "torch", "torchvision")
_PLAIN = (bool, int, float, str, bytes, type(None))


class OwnCode(NamedTuple):
    """What was read.

    Args:
        digest: SHA-256 in hex; None where there is no code of the user's own.
        unread: names of what has no code in Python, such as a class of a compiled extension.
    """

    digest: str | None
    unread: tuple[str, ...]


def own_code(things: Iterable[object]) -> OwnCode:
    """The code of functions, classes and objects that are called, but for foveate's, timm's and torch's."""
    texts, unread, seen = set[str](), set[str](), set[int]()
    waiting = list(things)
    while waiting:
        thing = _definition(waiting.pop())
        if id(thing) in seen or _package(thing) in _OURS:
            continue
        seen.add(id(thing))
        # Without the module: a script's own is called otherwise in a process that it starts.
        name = str(getattr(thing, "__qualname__", type(thing).__qualname__))
        if isinstance(thing, FunctionType):
            texts.add(f"{name}\n{_source(thing)}")
        elif not isinstance(thing, functools.partial) and not _is_written_in_python(thing):
            unread.add(name)
        for key, value in _parts(thing):
            if _is_plain(value):
                texts.add(f"{name} {key}={value!r}")
            elif _is_data(value):
                texts.add(f"{name} {key}={value_text(value)}")
            elif not _is_installed(_definition(value)):
                waiting.append(value)
    text = "\n".join(sorted(texts)).encode("utf-8", "surrogatepass")
    return OwnCode(hashlib.sha256(text).hexdigest() if texts or unread else None, tuple(sorted(unread)))


def _definition(thing: Any) -> Any:
    """The function or class behind a method, a property, a decorated function or an object that is called."""
    if isinstance(thing, property):
        return _definition(thing.fget)
    if isinstance(thing, staticmethod | classmethod) or inspect.ismethod(thing):
        return _definition(thing.__func__)
    if isinstance(thing, type | FunctionType | functools.partial) and not hasattr(thing, "__wrapped__"):
        return thing
    if callable(thing) and hasattr(thing, "__wrapped__") and not isinstance(thing, type):
        return _definition(thing.__wrapped__)
    return thing if isinstance(thing, type) or inspect.isroutine(thing) or not callable(thing) else type(thing)


def _package(thing: Any) -> str:
    return str(getattr(thing, "__module__", None) or "").partition(".")[0]


def _is_installed(thing: Any) -> bool:
    """Whether it is of a package, or nothing that has code."""
    if isinstance(thing, functools.partial):
        return False
    if not isinstance(thing, type | FunctionType):
        return True
    file = getattr(sys.modules.get(thing.__module__), "__file__", None) or ""
    known = _package(thing) in (*_OURS, *sys.stdlib_module_names)
    return known or "site-packages" in file or "dist-packages" in file


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _is_data(value: object) -> bool:
    """Whether it says by its values what it is."""
    return isinstance(value, list | tuple | set | frozenset | Mapping | np.ndarray | Tensor)


def _is_written_in_python(thing: Any) -> bool:
    if not isinstance(thing, type):
        return False
    routines = [each for each in map(_definition, vars(thing).values()) if inspect.isroutine(each)]
    return not routines or any(isinstance(each, FunctionType) for each in routines)


def _source(function: FunctionType) -> str:
    """Its text; where it has none, as what was typed at a prompt, what it was compiled to."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return compiled_text(function.__code__)


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What a definition is made of, and what it names."""
    if isinstance(thing, functools.partial):
        yield "function", thing.func
        yield from ((str(number), value) for number, value in enumerate(thing.args))
        yield from thing.keywords.items()
    elif isinstance(thing, type):
        yield from ((base.__qualname__, base) for base in thing.__bases__)
        yield from ((key, value) for key, value in vars(thing).items() if not key.startswith("__") or callable(value))
    elif isinstance(thing, FunctionType):
        names = sorted(set(_names(thing.__code__)))
        for key in names:
            value = thing.__globals__.get(key)
            if not isinstance(value, ModuleType):
                yield key, value
            elif value.__name__.partition(".")[0] not in (*_OURS, *sys.stdlib_module_names):
                yield from ((of, getattr(value, of)) for of in names if hasattr(value, of))
        for key, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty one
                yield key, cell.cell_contents


def _names(code: CodeType) -> Iterator[str]:
    yield from (name for name in code.co_names if not name.startswith("__"))
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)
