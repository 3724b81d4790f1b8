"""Copies of a caller's model that share nothing with it, so that the model itself never runs.

``copy.deepcopy`` takes a Python function as it is. A ``forward`` that was replaced by a function, as
``model.forward = torch.compile(model.forward)`` does, would run the model itself in the copy. So functions that reach
the model are made anew around the copy (``functions.py``). Where that does not help, the first module of the model that
would run raises an error instead.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from foveate.errors import FoveateError, first_line
from foveate.model_info import device_and_dtype, unwrapped
from foveate.preserve import preserve_state
from foveate.surgery.functions import DEPTH, LENGTH, ORIGINAL, Functions
from foveate.surgery.record import record_of

__all__ = ["changed_by_own_hooks", "copied", "guarded", "is_compiled", "on_a_copy"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LOCKS: dict[type, Callable[[], object]] = {type(make()): make for make in (threading.Lock, threading.RLock)}
_PLAIN, _EMPTY = frozenset((bool, int, float, str, type(None))), (dict, OrderedDict)
_KEPT = ("_parameters", "_buffers", "_modules")
_OWN = frozenset(vars(nn.Module()))
Result = TypeVar("Result")
logger = logging.getLogger("foveate")


def _is_foreign(hook: object) -> bool:
    # Hooks of torch.nn.utils compute weights, timm's collect features, ours attend: they are part of the network.
    # A user's own hooks watch it.
    while isinstance(hook, functools.partial):
        hook = hook.func
    module = getattr(hook, "__module__", "") or type(hook).__module__
    return not module.startswith(("torch.nn.", "timm.", "foveate.surgery."))


def _foreign_hooks(module: nn.Module) -> Iterator[tuple[dict[int, object], int, object]]:
    for attribute in _HOOKS:
        hooks = getattr(module, attribute)
        for key, hook in list(hooks.items()):
            if _is_foreign(hook):
                yield hooks, key, hook


def changed_by_own_hooks(model: nn.Module, images: Tensor) -> tuple[str, str] | None:
    """The first module whose values the user's own forward hooks change, which copies do not have.

    The model itself runs once, if it has any: a hook may only watch, which is seen by what it returns and leaves.

    Args:
        model: left as found: modes, gradients, buffers, random numbers and hooks.
        images: (B, C, H, W), normalised.

    Returns:
        The module's dotted name, and ``takes`` or ``gives``; None where no hook changes anything.

    Raises:
        FoveateError: the model does not run with its hooks.
    """
    found: list[tuple[str, str]] = []
    held: list[tuple[dict[int, Any], int, object]] = []
    whole = unwrapped(model)
    with preserve_state(model, evaluation=True, no_grad=True, buffers=True):
        try:
            for name, module in model.named_modules():
                kinds = {id(module._forward_hooks): "gives", id(module._forward_pre_hooks): "takes"}
                for hooks, key, hook in list(_foreign_hooks(module)):
                    if kind := kinds.get(id(hooks)):
                        held.append((hooks, key, hook))
                        hooks[key] = _telling(hook, kind, functools.partial(found.append, (name, kind)))
                        whole = whole if module in set(whole.modules()) else model
            if held:
                whole(images.to(*device_and_dtype(whole), copy=True))
        except Exception as error:
            said = f"{type(model).__name__} does not run with hooks of your own: {first_line(error)}"
            raise FoveateError(said) from error
        finally:
            for hooks, key, hook in held:
                hooks[key] = hook
    return found[0] if found else None


def _telling(hook: Any, kind: str, tell: Callable[[], None]) -> Callable[..., Any]:
    """A hook that also tells when it changes what its module gives or takes."""

    def call(module: nn.Module, *given: Any) -> Any:
        values = given[-1] if kind == "gives" else given  # with the keyword arguments, where the hook asked for them
        before = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in _leaves(values)]
        result = hook(module, *given)
        after = list(_leaves(values if result is None else result))
        if len(before) != len(after) or not all(map(_is_same, before, after)):
            tell()
        return result

    return call


def _leaves(value: object) -> Iterator[object]:
    parts = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(parts, list | tuple):
        for part in parts:
            yield from _leaves(part)
    else:
        yield value


def _is_same(one: object, other: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    return (one.shape, one.dtype) == (other.shape, other.dtype) and _equal(one, other)


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` was applied to this very module, in one of its three ways."""
    return (
        "_orig_mod" in vars(module).get("_modules", {})
        or module._compiled_call_impl is not None
        or hasattr(vars(module).get("forward"), ORIGINAL)
    )


def _roots(model: nn.Module) -> list[nn.Module]:
    record = record_of(model)
    return [model, *(removed.module for removed in record.removed.values())] if record else [model]


def _states(value: object, depth: int = 0) -> Iterator[object]:
    """Tensors, locks and empty dictionaries in a module's attributes, and in containers there."""
    if isinstance(value, Tensor) or type(value) in _LOCKS or (type(value) in (dict, OrderedDict) and not value):
        yield value
    elif depth < DEPTH and isinstance(value, dict | list | tuple | set) and len(value) <= LENGTH:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _states(part, depth + 1)


class _Eager(nn.Module):
    """What ``torch.compile`` made of a module, in a copy: it is called, and not compiled."""

    def forward(self, *args: object, **kwargs: object) -> object:
        return self._orig_mod(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        inner = vars(self)["_modules"]["_orig_mod"]
        return inner if name == "_orig_mod" else getattr(inner, name)


def copied(model: nn.Module, *, data: bool) -> nn.Module:
    """A copy in eval mode, with data or on device "meta", without the user's own hooks: they are not run.

    Raises:
        CannotCopy: a part of the model cannot be copied; the message names it.
    """
    memo: dict[int, object] = {}
    roots = _roots(model)
    modules = list({id(module): module for root in roots for module in root.modules()}.values())
    tensors = {id(t) for root in roots for t in (*root.parameters(), *root.buffers())}
    functions = Functions({id(module) for module in modules} | tensors)
    for module in modules:
        foreign = {id(hook) for _, _, hook in _foreign_hooks(module)}
        for _, _, hook in _foreign_hooks(module):
            memo[id(hook)] = hook
        for name, value in vars(module).items():
            kind = type(value)
            if kind in _PLAIN:  # nearly all attributes: the steps below would find nothing in them
                continue
            if kind in _EMPTY and not value:
                memo[id(value)] = kind()
                continue
            for state in _states(value) if name not in _KEPT or not value else ():
                if isinstance(state, Tensor):  # such as a feature map that the module keeps, which has a history
                    memo[id(state)] = state.detach().clone() if data else state.detach().to("meta")
                else:  # an empty dictionary, which is most of a module and slow to copy, or a lock
                    memo[id(state)] = _LOCKS.get(type(state), type(state))()
            for part in value.values() if name in _HOOKS else [value] if name not in _OWN else ():
                if id(part) not in foreign:
                    functions.reaches(part)
    for root in roots if not data else []:
        for parameter in root.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        for buffer in root.buffers():
            memo[id(buffer)] = buffer.detach().to("meta")
    fill = functions.made_anew(memo)
    try:
        result = copy.deepcopy(model, memo)
        fill()
    except Exception as error:
        raise CannotCopy(
            f"{type(model).__name__} cannot be copied, and only a copy of it is run to see its shapes: "
            f"{_uncopyable(model)}{first_line(error)}"
        ) from error
    for module in list(result.modules()):
        if "_orig_mod" in vars(module).get("_modules", {}):
            vars(module).pop("forward", None)
            module.__class__ = _Eager
        for hooks, key, _ in _foreign_hooks(module):
            del hooks[key]
    for root in _roots(result):
        root.eval()
    return result


class CannotCopy(FoveateError):
    """A part of a model cannot be copied."""


def _uncopyable(model: nn.Module) -> str:
    """The attribute that stands in the way, such as an open file."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            try:
                if key not in _OWN and not isinstance(value, Tensor):
                    copy.deepcopy(value)
            except Exception:  # noqa: BLE001 - that is what is asked
                return f"its attribute {f'{name}.{key}'.lstrip('.')!r} holds a {type(value).__name__}: "
    return ""


@contextlib.contextmanager
def guarded(model: nn.Module) -> Iterator[None]:
    """Whatever the copy does, the model itself does not run in this thread, and its buffers stay as they are."""
    names = {id(module): name for root in _roots(model) for name, module in root.named_modules()}
    thread = threading.get_ident()
    # A function in a class's place may change buffers without running a module. Else they are left alone: another
    # thread may be training the model.
    patched = any("forward" in vars(module) for root in _roots(model) for module in root.modules())
    held = [buffer for root in _roots(model) for buffer in root.buffers()] if patched else []
    buffers = [(buffer, buffer.detach().clone()) for buffer in held]

    def refuse(module: nn.Module, _args: tuple[object, ...]) -> None:
        if id(module) in names and threading.get_ident() == thread:
            raise FoveateError(_runs_itself(model, names[id(module)]))

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
        changed = [(buffer, before) for buffer, before in buffers if not _equal(buffer, before)]
        with torch.no_grad():
            for buffer, before in changed:
                buffer.copy_(before)
    if changed:
        raise FoveateError(_runs_itself(model, ""))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.is_meta or torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _runs_itself(model: nn.Module, name: str) -> str:
    part = f"its module {name!r}" if name else "the model"
    return (
        f"a copy of {type(model).__name__} would run {part} itself, so it is not run: a function that was put into the "
        "model, such as a forward of your own, refers to the model by a way that cannot be copied; put the class's own "
        "forward back first (del model.forward), or make the function a method"
    )


def on_a_copy(model: nn.Module, task: Callable[[nn.Module], Result]) -> tuple[Result, nn.Module]:
    """Do a task on a copy of a model without data; where that fails, on one with data, whose failure is the real one.

    Args:
        model: left as found, the state of the random number generators too.
        task: it may change the copy, which is in eval mode.

    Returns:
        The task's result, and the copy.

    Raises:
        FoveateError: the model has lazy layers that have not run, cannot be copied, or would run itself in a copy; or
            what the task raises.
        Exception: whatever else the task raises on the copy with data.
    """
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise FoveateError(f"{type(model).__name__} has lazy layers without weights: run it once on an image first")
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with preserve_state(devices=devices), guarded(model):
        try:
            copy_ = copied(model, data=False)
            return task(copy_), copy_
        except Exception as error:
            if isinstance(error, FoveateError) and not isinstance(error, CannotCopy):
                raise
            logger.debug("%s does not run without data: %s", type(model).__name__, first_line(error))
        copy_ = copied(model, data=True)
        return task(copy_), copy_
