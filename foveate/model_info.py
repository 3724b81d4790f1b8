"""What a network says of itself: timm's description, the device and dtype it computes in, what it was built with."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import sys
from collections.abc import Mapping
from itertools import chain
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "OURS",
    "attributes_of",
    "compiled_text",
    "device_and_dtype",
    "is_library",
    "is_plain",
    "pretrained_config",
    "unwrapped",
    "update_pretrained_config",
    "value_text",
]

OURS = ("foveate", "timm", "torch", "torchvision")
"""Packages whose versions a result names."""

ATTRIBUTES = ("pretrained_cfg", "default_cfg")  # timm's name, and its older one
_WRAPPERS = {
    *("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"),  # torch's
    *("AveragedModel", "ModelEmaV2", "ModelEmaV3"),  # torch's and timm's averages of weights
}


def pretrained_config(model: nn.Module) -> dict[str, Any]:
    """timm's description of a network and its weights: how images are prepared, its classes, what its ends are called.

    Args:
        model: its ``pretrained_cfg`` is read: a dictionary, timm's dataclass, or any object with these attributes;
            of a wrapper such as ``DataParallel`` or ``AveragedModel`` that of the network inside.

    Returns:
        A new dictionary; an empty one for a model without a description. Values that are None are left out.
    """
    held: object = getattr(unwrapped(model), ATTRIBUTES[0], None)
    fields = held if isinstance(held, Mapping) else getattr(held, "__dict__", {})
    return {key: value for key, value in fields.items() if value is not None}


def update_pretrained_config(model: nn.Module, fields: Mapping[str, object]) -> None:
    """Write into timm's description of a network, in place of the values that it had.

    The description keeps its kind, a dictionary or timm's dataclass, and is a new object: timm's networks may share
    one. A model without one gets a dictionary.
    """
    model = unwrapped(model)
    held: object = getattr(model, ATTRIBUTES[0], None)
    if dataclasses.is_dataclass(held) and not isinstance(held, type):
        config: object = dataclasses.replace(held, **fields)
    elif held is None or isinstance(held, Mapping):
        config = {**(held or {}), **fields}
    else:
        config = copy.copy(held)
        for key, value in fields.items():
            setattr(config, key, value)
    setattr(model, ATTRIBUTES[0], config)
    if hasattr(model, ATTRIBUTES[1]):
        setattr(model, ATTRIBUTES[1], config)


def device_and_dtype(*modules: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a network computes, and in which dtype: those of its first floating point parameter, else buffer.

    Args:
        modules: the first of them that has such a tensor counts.

    Returns:
        For a network without any: the device of its first tensor, else torch's default device; torch's default dtype.
    """
    import torch

    first = None
    for tensor in chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
        first = tensor if first is None else first
    return (first if first is not None else torch.empty(0)).device, torch.get_default_dtype()


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what ``torch.compile``, data parallelism or an average of weights put around it.

    A class of the user's own that holds a network is not looked into: it may compute more than the network does.
    """
    from torch import nn

    while isinstance(model, nn.Module):
        children = vars(model).get("_modules", {})  # of a TorchScript module not a dictionary
        known = [base for base in type(model).__mro__ if base.__name__ in _WRAPPERS]
        wraps = any(base.__module__.startswith(("torch.", "timm.")) for base in known)
        name = "module" if wraps else "_orig_mod"
        if name not in children or not isinstance(children[name], nn.Module):
            break
        model = children[name]
    return model


def attributes_of(module: nn.Module) -> tuple[str, list[tuple[str, str]]]:
    """The class of a module, and what it holds beside modules, parameters and buffers, as text.

    See ``value_text``.
    """
    from torch import nn

    kind, usual = type(module), vars(nn.Module())
    held = [(name, value_text(value)) for name, value in sorted(vars(module).items()) if name not in usual]
    return f"{kind.__module__}.{kind.__qualname__}", held


def value_text(value: object, _outside: tuple[int, ...] = ()) -> str:
    """A value as text that is the same for equal values, in another process, too.

    Of numbers, texts, tensors, arrays, functions and classes, and of lists, tuples, sets, dictionaries and dataclasses
    of them. Of an object of another kind its class, and what it holds of numbers and texts, and lists of them.
    """
    import numpy as np
    import torch

    if isinstance(value, bool | int | float | complex | str | bytes | type(None) | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, np.generic):
        return f"{value.dtype} {value.tobytes().hex()}"
    if isinstance(value, torch.Tensor):
        described, digest = f"{value.dtype} {tuple(value.shape)}", hashlib.sha256()
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return f"{described} {digest.hexdigest()}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if id(value) in _outside:
        return "itself"
    inside = functools.partial(value_text, _outside=(*_outside, id(value)))
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inside, value)))}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(inside, value))}]"
    if isinstance(value, Mapping):
        return inside([*value.items()])
    if isinstance(value, functools.partial):
        return inside((value.func, value.args, value.keywords))
    if isinstance(value, FunctionType) and not is_library(value):
        enclosed = [cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell)]
        given = (value.__defaults__, value.__kwdefaults__, enclosed)
        return f"{value.__qualname__} {compiled_text(value.__code__)} {inside(given)}"
    known = value if hasattr(value, "__qualname__") else type(value)
    name = f"{getattr(known, '__module__', '')}.{known.__qualname__}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return name + inside([(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)])
    if known is value:
        return name
    plain = [(key, held) for key, held in sorted(getattr(value, "__dict__", {}).items()) if is_plain(held)]
    return name + inside(plain) if plain else name


def is_plain(value: object) -> bool:
    """A number or a text, or a list or tuple of them: what needs no walk through other objects."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return isinstance(value, bool | int | float | complex | str | bytes | type(None))


def is_library(thing: Any) -> bool:
    """Whether a class or a function is of an installed package, or comes with Python."""
    package = str(getattr(thing, "__module__", None) or "").partition(".")[0]
    file = getattr(sys.modules.get(thing.__module__), "__file__", None) or ""
    known = package in (*OURS, *sys.stdlib_module_names)
    return known or "site-packages" in file or "dist-packages" in file


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True


def compiled_text(code: CodeType) -> str:
    """What a function was compiled to, as a text that is the same in another process."""
    constants = [
        compiled_text(each)
        if isinstance(each, CodeType)
        else repr(sorted(map(repr, each)))
        if isinstance(each, frozenset)
        else repr(each)
        for each in code.co_consts
    ]
    return repr((code.co_code, code.co_names, code.co_varnames, constants))
