"""A user's own code as a digest: a mechanism or a network whose code has changed is another one.

The source of functions is read, of classes that of their methods; with it the classes that they derive from, and the
functions, classes and values (numbers, text, arrays, lists and dictionaries of them) that they name. What comes with
Python or as an installed package is not followed, and foveate, timm and torch are left out: a result says with which
versions it was made.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from foveate.model_info import OURS, compiled_text, is_library, value_text

__all__ = ["OwnCode", "own_code"]

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
        if id(thing) in seen or _package(thing) in OURS:
            continue
        seen.add(id(thing))
        # Without the module: a script's own is called otherwise in a process that it starts.
        name = str(getattr(thing, "__qualname__", type(thing).__qualname__))
        if isinstance(thing, FunctionType):
            texts.add(f"{name}\n{_source(thing.__code__)}")
        elif not isinstance(thing, functools.partial) and not _is_written_in_python(thing):
            unread.add(name)
        for key, value in _parts(thing):
            if _is_plain(value):
                texts.add(f"{name} {key}={value!r}")
            elif _is_data(value):
                texts.add(f"{name} {key}={value_text(value)}")
                waiting += [each for each in _held(value) if not _is_installed(_definition(each))]
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
    return is_library(thing)


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _is_data(value: object) -> bool:
    """Whether it says by its values what it is."""
    return isinstance(value, complex | list | tuple | set | frozenset | Mapping | np.ndarray | np.generic | Tensor)


def _held(value: object, depth: int = 4) -> Iterator[Any]:
    """The functions and classes in lists and dictionaries, and in those inside."""
    if isinstance(value, type | FunctionType | functools.partial):
        yield value
    elif depth and isinstance(value, Mapping):
        yield from (found for each in (*value, *value.values()) for found in _held(each, depth - 1))
    elif depth and isinstance(value, list | tuple | set | frozenset):
        yield from (found for each in value for found in _held(each, depth - 1))


def _is_written_in_python(thing: Any) -> bool:
    if not isinstance(thing, type):
        return False
    routines = [each for each in map(_definition, vars(thing).values()) if inspect.isroutine(each)]
    return not routines or any(isinstance(each, FunctionType) for each in routines)


_read: dict[int, tuple[CodeType, str]] = {}  # by identity: equal code may have other defaults, which the text has


def _source(code: CodeType) -> str:
    """Its text as it was first read: the file may change while what was loaded of it still runs.

    Where it has none, as what was typed at a prompt, what it was compiled to.
    """
    if id(code) not in _read:
        try:
            text = inspect.getsource(code)
        except (OSError, TypeError):
            text = compiled_text(code)
        _read[id(code)] = (code, text)
    return _read[id(code)][1]


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
        names, of_globals = (sorted(set(found)) for found in (_names(thing.__code__), _global_names(thing.__code__)))
        for key in names:
            value = thing.__globals__.get(key) if key in of_globals else None
            if not isinstance(value, ModuleType):
                yield key, value
            else:
                yield from _of_module(value, names)
        for key, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty one
                yield key, cell.cell_contents


def _of_module(module: ModuleType, names: Sequence[str], depth: int = 4) -> Iterator[tuple[str, Any]]:
    """What is named of a module of one's own, and of the modules in it."""
    if not depth or module.__name__.partition(".")[0] in (*OURS, *sys.stdlib_module_names):
        return
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, ModuleType):
            yield from _of_module(value, names, depth - 1)
        elif hasattr(module, name):
            yield name, value


def _global_names(code: CodeType) -> Iterator[str]:
    """Names that are looked up as variables of the module, and not as attributes of something."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _global_names(each)


def _names(code: CodeType) -> Iterator[str]:
    yield from (name for name in code.co_names if not name.startswith("__"))
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)
