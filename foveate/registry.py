"""Mechanisms, pools and heads by name: the folder is the registry, a constructor's signature is its schema.

``foveate/attention/NAME.py`` holds the mechanism NAME: the first name in the file's ``__all__`` is its class. Pools are
in ``foveate/pooling``, heads in ``foveate/heads``. ``timm:NAME`` is timm's own attention layer of that name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError, first_line, near
from foveate.spec import Spec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "find", "names", "options", "register"]

_FOLDERS = {"attention": "foveate.attention", "pooling": "foveate.pooling", "heads": "foveate.heads"}
# What an entry of each registry is called, and the sizes that its constructor takes before the options.
_WORDS = {"attention": "mechanism", "pooling": "pool", "heads": "head"}
_SIZES = {"attention": ("channels",), "pooling": ("channels",), "heads": ("channels", "features", "classes")}
_REGISTERED: dict[tuple[str, str], Callable[..., object]] = {}


@functools.cache
def _in_folder(kind: str) -> tuple[str, ...]:
    if kind not in _FOLDERS:
        raise FoveateError(f"there is no registry {kind!r}; {near(kind, _FOLDERS)}")
    # The folder is listed without importing the modules in it: they import torch.
    package = importlib.import_module(_FOLDERS[kind])
    return tuple(sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")))


def names(kind: str = "attention") -> tuple[str, ...]:
    """Every name that ``build`` knows, without timm's: the files of the folder and what was registered.

    Args:
        kind: the registry: "attention", "pooling" or "heads".

    Returns:
        The names, sorted.
    """
    return tuple(sorted({*_in_folder(kind), *(name for of, name in _REGISTERED if of == kind)}))


def register(name: str, constructor: Callable[..., object] | None = None, *, kind: str = "attention") -> Any:
    """Make a mechanism of one's own available by name, as a call or as a class decorator.

    Args:
        name: an identifier that is not taken. What is defined anew, as when a notebook's cell runs again, may be
            registered anew.
        constructor: called as ``constructor(channels, **options)``, for a head as ``constructor(channels, features,
            classes, **options)``; its signature is the schema. An option cannot be called ``start``: in a plan that
            word belongs to ``insert``.
        kind: the registry: "attention", "pooling" or "heads".

    Returns:
        The constructor, or without one a decorator.

    Raises:
        FoveateError: the name is taken or is not an identifier, or the constructor cannot be called in this way.
    """
    if constructor is None:
        return functools.partial(register, name, kind=kind)
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise FoveateError(f"cannot register {name!r}: a name is letters, digits and _, as in 'my_attention'")
    if name in names(kind) and not _same_place(constructor, _REGISTERED.get((kind, name))):
        raise FoveateError(f"cannot register {name!r}: the name is taken; choose another")
    parameters = list(inspect.signature(constructor).parameters) if callable(constructor) else []
    if len(parameters) < len(_SIZES[kind]) or "start" in parameters:
        sizes = ", ".join(_SIZES[kind])
        raise FoveateError(f"cannot register {name!r}: it is called as constructor({sizes}, **options) without 'start'")
    _REGISTERED[kind, name] = constructor
    return constructor


def _same_place(one: object, other: object) -> bool:
    places = [(getattr(c, "__module__", ""), getattr(c, "__qualname__", None)) for c in (one, other)]
    return places[0] == places[1] and places[0][1] is not None


def find(name: str, kind: str = "attention") -> Callable[..., Any]:
    """The constructor behind a name.

    Raises:
        FoveateError: no mechanism has this name; the nearest names are shown.
    """
    if name.startswith("timm:") and kind == "attention":
        from foveate.attention import _timm

        return _timm.constructor(name.removeprefix("timm:"))
    if (kind, name) in _REGISTERED:
        return _REGISTERED[kind, name]
    if name not in _in_folder(kind):
        timms = " (timm's own: 'timm:NAME')" if kind == "attention" else ""
        raise FoveateError(f"no {_WORDS[kind]} is called {name!r}; {near(name, names(kind))}{timms}")
    module = importlib.import_module(f"{_FOLDERS[kind]}.{name}")
    constructor: Callable[..., object] = getattr(module, module.__all__[0])
    return constructor


def options(name: str, kind: str = "attention") -> dict[str, Any]:
    """The options of a mechanism with their defaults, read from its constructor's signature.

    Args:
        name: of a mechanism, a pool or a head.
        kind: the registry: "attention", "pooling" or "heads".

    Returns:
        A default for each option; ``inspect.Parameter.empty`` where there is none.
    """
    rest = list(inspect.signature(find(name, kind)).parameters.values())[len(_SIZES[kind]) :]
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {parameter.name: parameter.default for parameter in rest if parameter.kind in named}


def _check_type(spec: Spec, key: str, value: object, default: object) -> None:
    if default is None or default is inspect.Parameter.empty or value is None:
        return
    wanted = (int, float) if isinstance(default, float) else (type(default),)
    if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(default, bool)):
        kind = type(default).__name__
        raise FoveateError(f"{spec}: {key}={value!r} is not of type {kind}; the default is {key}={default!r}")


def build(spec: Spec | str, *sizes: object, kind: str = "attention") -> nn.Module:
    """Build a mechanism, a pool or a head.

    Args:
        spec: its name and options, as data or as text.
        sizes: C of the (B, C, H, W) feature maps. For a head: the channels of each of its feature maps (a tuple), the
            number of pooled features, and the number of classes.
        kind: the registry: "attention", "pooling" or "heads".

    Returns:
        The module, with random weights.

    Raises:
        FoveateError: the name or an option is unknown, or an option's value does not fit the sizes.
    """
    if isinstance(spec, str):
        spec = Spec.parse(spec)
    constructor = find(spec.name, kind)
    schema = options(spec.name, kind)
    for key, value in spec.options:
        if key not in schema:
            raise FoveateError(f"{spec.name} has no option {key!r}; {near(key, schema)}")
        _check_type(spec, key, value, schema[key])
    try:
        module: nn.Module = constructor(*sizes, **spec.kwargs)
    except FoveateError:
        raise
    except Exception as error:
        said = ", ".join(f"{size} {word}" for size, word in zip(sizes, _SIZES[kind], strict=False))
        raise FoveateError(f"{spec} cannot be built for {said}: {first_line(error)}") from error
    return module
