"""Layers of torch's own that are followed by attention, and tools that join such a layer with the next one.

What fuses a convolution with the norm behind it finds both by their exact classes, makes one layer of them, and knows
nothing of a hook between. So a layer with attention behind it gets a class of its own, as torch gives one to a
parametrized layer: no pattern matches it, and torch.fx goes into it and finds the attention. Tools that ask for no
class put other layers in its place. Then the attention is missing, and the network says so in its next forward pass.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from foveate.errors import FoveateError

__all__ = ["compiled_for_itself", "exchange_class", "guard", "release"]

ATTRIBUTE = "_foveate_hosts"
_FOLDED_INTO = (nn.modules.conv._ConvNd, nn.Linear)
_FUSED = (*_FOLDED_INTO, nn.modules.batchnorm._BatchNorm)


class _Host:
    """Mixed into the class of a layer that is followed by attention."""

    def _check_input_dim(self, x: Tensor | torch.fx.Proxy) -> None:
        """Of a norm. torch.fx asks for no shape."""
        if not isinstance(x, torch.fx.Proxy):
            super()._check_input_dim(x)  # type: ignore[misc]  # the layer's

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[object, ...]:
        if parametrize.is_parametrized(self):  # type: ignore[arg-type]  # a layer
            return super().__reduce_ex__(protocol)  # where torch says that it keeps none of these
        return _empty, (_plain_class(type(self)),), vars(self)

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        """A convolution that is copied alone, outside of its network, is copied to be fused: without its attention."""
        plain, state = _plain_class(type(self)), dict(vars(self))
        alone = not memo and issubclass(plain, _FOLDED_INTO)
        made = object.__new__(plain) if alone else _empty(plain)
        memo[id(self)] = made
        if alone:
            state["_modules"] = {name: own for name, own in state["_modules"].items() if name == "parametrizations"}
            state["_forward_hooks"] = type(state["_forward_hooks"])(
                (key, hook) for key, hook in state["_forward_hooks"].items() if not _is_foveates(hook)
            )
        made.__setstate__(copy.deepcopy(state, memo))
        exchange_class(made, type(made))
        return made


def _is_foveates(hook: object) -> bool:
    return str(getattr(getattr(hook, "func", hook), "__module__", "")).startswith("foveate.surgery.")


def _plain_class(kind: type[Any]) -> type[Any]:
    """The class of the layer as it was."""
    order = kind.__mro__
    return order[order.index(_Host) + 1]


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _host_class(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _classes:
        name = f"{kind.__name__}WithAttention"
        _classes[kind] = type(name, (_Host, kind), {"__module__": __name__, "__doc__": kind.__doc__})
    return _classes[kind]


def _empty(kind: type[nn.Module]) -> nn.Module:
    return object.__new__(_host_class(kind))


def exchange_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another class, and again the one that torch puts above it where parameters are parametrized.

    Args:
        module: its class is the one to exchange, or torch's own above that one.
        kind: the new class.
    """
    module.__class__ = kind
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(module)
        for name in module.parametrizations:  # type: ignore[union-attr]  # is_parametrized says that it is a ModuleDict
            parametrize._inject_property(module, name)


def mark_host(module: nn.Module) -> None:
    """Give a layer that fusers look for a class of its own; others are left as they are.

    Args:
        module: what attention follows.
    """
    kind = type(module)
    torchs_own = kind.__module__.startswith("torch.nn.modules.")
    activation = kind.__module__ == "torch.nn.modules.activation" and kind is not nn.MultiheadAttention
    if torchs_own and (issubclass(kind, _FUSED) or activation):
        module.__class__ = _host_class(kind)


def unmark_host(module: nn.Module) -> None:
    """Give a layer its own class back."""
    ours = type(module).__module__ == __name__ or parametrize.is_parametrized(module)
    if ours and isinstance(module, _Host):
        exchange_class(module, _plain_class(type(module)))


def lost_hosts(model: nn.Module) -> list[str]:
    """Names of modules that attention followed, and that another module stands in place of now.

    What was taken out with the whole container around it, as by a network cut short, is not among them.
    """
    lost = []
    for host in getattr(model, ATTRIBUTE):
        *above, leaf = host.split(".")
        module: Any = model
        for name in above:
            module = module._modules.get(name) if module is not None else None
        if module is None:
            continue
        layer = module._modules.get(leaf) if leaf else module
        if layer is None:
            cut = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict | nn.Identity)
            lost += [] if cut else [host]
        elif not any(map(_is_foveates, layer._forward_hooks.values())):
            lost.append(host)
    return lost


def guard(model: nn.Module) -> None:
    """Mark what attention follows in a model, and let the model say in its forward pass when some of it is missing."""
    hosts = [name for name, part in model.named_modules() if any(map(_is_foveates, part._forward_hooks.values()))]
    for name in hosts:
        mark_host(model.get_submodule(name))
    setattr(model, ATTRIBUTE, tuple(hosts))
    model.__prepare_scriptable__ = refuse_script  # type: ignore[assignment]  # asked for by torch.jit.script
    if hosts:
        model.register_forward_pre_hook(refuse_lost_attention)


def release(model: nn.Module) -> None:
    """Undo ``guard``."""
    for part in model.modules():
        unmark_host(part)
    for key, hook in list(model._forward_pre_hooks.items()):
        if hook is refuse_lost_attention:
            del model._forward_pre_hooks[key]
    for attribute in (ATTRIBUTE, "__prepare_scriptable__"):
        if attribute in vars(model):
            delattr(model, attribute)


def refuse_script() -> nn.Module:
    """In place of ``torch.jit.script``.

    Raises:
        FoveateError: always.
    """
    raise FoveateError(
        "a model with inserted attention cannot be compiled by torch.jit.script, for hooks call the attention: "
        "use torch.jit.trace, torch.compile or torch.export"
    )


def refuse_lost_attention(model: nn.Module, _args: tuple[object, ...]) -> None:
    """Before a forward pass: raise where attention was inserted and is not called any more.

    Raises:
        FoveateError: a layer that attention follows was exchanged.
    """
    if torch.compiler.is_compiling() or not (lost := lost_hosts(model)):
        return
    names = ", ".join(map(repr, lost))
    raise FoveateError(
        f"the attention after {names} is lost: another layer was put there, as by a tool that fuses a convolution with "
        "its norm or that converts norms. Use such a tool before foveate.insert, or insert the attention after the "
        "block that holds the convolution and the norm; foveate.remove(model) gives the network without attention"
    )


@contextlib.contextmanager
def compiled_for_itself() -> Iterator[None]:
    """Inside, torch.compile takes code for a network only if it was compiled with the same hooks, and never gives up.

    By default it does not look at hooks: of two networks that differ in nothing but attention, the second one would run
    what was compiled of the first, with or without attention. And after eight networks of one class it stops compiling.
    """
    from torch._dynamo import config  # slow to import

    with config.patch(skip_nnmodule_hook_guards=False, recompile_limit=10_000, accumulated_recompile_limit=10_000):
        yield
