"""What a user calls is called as it is written down, or an error names the nearest name."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import types
import typing
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from foveate.errors import FoveateError, near

__all__ = [
    *("UnknownName", "WrongArguments", "at_least", "checked_call", "checked_class", "no_attribute", "not_a_network"),
    *("plain_values", "whole_number"),
]

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., object])
_NETWORKS = ("model", "reference", "teacher")  # arguments that are networks; by their annotation also other things
_RENAMED = {"evaluate": {"split": "data"}}  # keywords of an older version, by function


class UnknownName(FoveateError, AttributeError):
    """``foveate`` has no such name. It is an AttributeError, too, so that ``hasattr`` answers."""


class WrongArguments(FoveateError, TypeError):
    """A call does not fit the function's arguments. It is a TypeError, too, as Python's own would be."""


def no_attribute(name: str, exist: Collection[str]) -> UnknownName:
    """The error for a name that the package does not have."""
    return UnknownName(f"foveate has no {name!r}; {near(name, exist)}")


def whole_number(value: Any) -> int | None:
    """A whole number of Python's, numpy's or torch's as an int; None for anything else, and for True and False."""
    flag = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    if flag or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def at_least(least: int, **given: Any) -> int:
    """The one argument that is given, as an int.

    Raises:
        FoveateError: it is no whole number, or less.
    """
    ((name, value),) = given.items()
    number = whole_number(value)
    if number is None:
        raise FoveateError(f"{name}={value!r}: give a whole number, at least {least}")
    if number < least:
        raise FoveateError(f"{name}={number}: must be at least {least}")
    return number


def plain_values(value: Any) -> Any:
    """Numbers, arrays and tensors of numpy's and torch's as Python's numbers and lists, also in a list or a tuple."""
    if isinstance(value, list | tuple):
        return [plain_values(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def not_a_network(given: object, others: str = "") -> FoveateError:
    """The error for something in the place of a network, where others could stand, too; it may be the name of one."""
    hint = f": foveate.create_model({given!r}) makes one" if isinstance(given, str) else ""
    return FoveateError(f"a network (torch.nn.Module){others} is expected, not a {type(given).__name__}{hint}")


def _networks(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, tuple[Any, ...]]:
    """For each argument that takes a network the kinds that it may be; what takes a protocol, too, checks it itself."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in _NETWORKS:
        if name in signature.parameters:
            written = types.SimpleNamespace(__annotations__={name: signature.parameters[name].annotation})
            hint = typing.get_type_hints(written, getattr(function, "__globals__", {}))[name]
            hint = getattr(hint, "__bound__", None) or hint
            parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            kinds = tuple(typing.get_origin(part) or part for part in parts)
            found |= {} if any(getattr(kind, "_is_protocol", False) for kind in kinds) else {name: kinds}
    return found


def _check_networks(kinds: Mapping[str, tuple[Any, ...]], given: Mapping[str, object]) -> None:
    for name in kinds.keys() & given.keys():
        value = given[name]
        if not isinstance(value, kinds[name]):
            raise not_a_network(value, ", a name or a path" if str in kinds[name] else "")
        if isinstance(value, Mapping) and value:
            _check_networks(dict.fromkeys(value, kinds[name][:1]), value)


def _home_of(name: str, function: Callable[..., object], parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """Where a name belongs that is a field of one of the arguments, such as ``recipe=Recipe(epochs=...)``."""
    for parameter in parameters.values():
        for word in re.findall(r"\w+", str(parameter.annotation)):
            kind = getattr(function, "__globals__", {}).get(word)
            if isinstance(kind, type) and name in getattr(kind, "__dataclass_fields__", ()):
                return f"{parameter.name}=fv.{word}({name}=...)"
    return None


def _check(
    called: str,
    function: Callable[..., object],
    signature: inspect.Signature,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> dict[str, object]:
    """The arguments by name, where they fit."""
    parameters = {name: p for name, p in signature.parameters.items() if name != "self"}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in () if takes_any else kwargs.keys() - parameters.keys():
        home = _home_of(name, function, parameters)
        advice = f"write {called}(..., {home})" if home else near(name, parameters)
        raise WrongArguments(f"{called} has no argument {name!r}; {advice}")
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        needed = [name for name, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        shown = ", ".join([*needed, *(["..."] if len(needed) < len(parameters) else [])])
        raise WrongArguments(f"{called}: {error}; call it as {called}({shown})") from None


def checked_call(name: str, function: F) -> F:
    """A public function, with its arguments' names checked first, and that networks are networks.

    Args:
        name: that it has in ``foveate``.
        function: the function; its signature and documentation are those of the result, too.

    Returns:
        The function, which raises ``WrongArguments`` in place of Python's TypeError for a call that does not fit, and
        ``FoveateError`` where something else stands in the place of a network.
    """
    signature = inspect.signature(function)
    renamed, networks = _RENAMED.get(name, {}), _networks(function, signature)

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> Any:
        for old in renamed.keys() & kwargs.keys():
            warnings.warn(f"{name}({old}=...) is {name}({renamed[old]}=...) now", DeprecationWarning, stacklevel=2)
            kwargs[renamed[old]] = kwargs.pop(old)
        _check_networks(networks, _check(name, function, signature, args, kwargs))
        return function(*args, **kwargs)

    call.__module__, call.__qualname__ = "foveate", name  # it can be pickled by its name
    return call  # type: ignore[return-value]  # of the same signature, which mypy cannot see


def checked_class(kind: C) -> C:
    """A decorator: a class whose constructor raises ``WrongArguments`` for arguments that it does not have."""
    init = vars(kind)["__init__"]
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked_init(self: object, *args: object, **kwargs: object) -> None:
        _check(kind.__name__, init, signature, (self, *args), kwargs)
        init(self, *args, **kwargs)

    kind.__init__ = checked_init  # type: ignore[misc]  # that is what the decorator is for
    return kind
