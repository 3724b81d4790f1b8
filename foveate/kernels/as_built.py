"""Whether a module is still as its class built it: a backend calls none of its children, and would miss a change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch.nn.modules import module as torch_module

__all__ = ["Built", "modification"]

_KINDS_OF_HOOKS = ("forward", "forward_pre", "backward", "backward_pre")
_global_hooks = tuple(getattr(torch_module, f"_global_{kind}_hooks") for kind in _KINDS_OF_HOOKS)


class Built(NamedTuple):
    """What a module is as its class built it."""

    children: Mapping[str, type[object]]
    """Their exact classes by name."""
    methods: Mapping[str, object]
    """Those that the definition calls and a backend does not, by name."""


def modification(module: object, built: Built) -> str:
    """What makes a module another than the one that was built, so that its children have to be called; empty: nothing.

    Args:
        module: an ``nn.Module``.
        built: how its class built it.
    """
    own, children = module.__dict__, built.children
    for name, method in built.methods.items():
        if name in own or getattr(type(module), name) is not method:
            return f"its method {name!r} was replaced"
    now = own["_modules"]
    for name, kind in children.items():
        child = now.get(name)
        if type(child) is not kind:
            return f"{name!r} is not the {kind.__name__} that was built"
        state = child.__dict__  # asked in each forward pass: a lookup in it is half of one by attribute
        if state["_forward_hooks"] or state["_forward_pre_hooks"]:
            return f"{name!r} has a forward hook"
        if state["_backward_hooks"] or state["_backward_pre_hooks"]:
            return f"{name!r} has a backward hook"
        if "forward" in state:
            return f"the forward method of {name!r} was replaced"
    for hooks in _global_hooks:
        if hooks:
            return "a hook for all modules is registered"
    return ""
