"""One forward pass that tells which module gives which shape, on a copy of the model: the model itself never runs.

The first copy is a skeleton, whose tensors have shapes and no data (device "meta"). Where an operation of the network
cannot run so, a copy with data is run on zeros.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from foveate.errors import FoveateError, first_line
from foveate.model_info import device_and_dtype, pretrained_config
from foveate.networks.create import channels_of
from foveate.surgery.apply import record_of, take_out

__all__ = ["Seen", "copied", "input_size_of", "on_a_copy", "probe", "run", "run_once"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
Result = TypeVar("Result")
logger = logging.getLogger("foveate")


@dataclass
class Seen:
    """What one forward pass showed of one module. Shapes include the batch of 1; None: not a single tensor."""

    calls: int = 0
    in_shape: tuple[int, ...] | None = None
    out_shape: tuple[int, ...] | None = None
    out_type: str = ""
    order: int = -1  # of its last end among all modules; -1: it does not run
    nhwc: bool = False  # the feature map is (1, H, W, C)

    @property
    def map_shape(self) -> tuple[int, int, int, int] | None:
        """(1, C, H, W) of the feature map that the module gives; None when it gives none."""
        if self.out_shape is None or len(self.out_shape) != 4:
            return None
        batch, one, two, three = self.out_shape
        return (batch, three, one, two) if self.nhwc else (batch, one, two, three)


def input_size_of(model: nn.Module, input_size: int | tuple[int, ...] | None = None) -> tuple[int, int, int]:
    """(channels, height, width) of the images a model takes.

    Args:
        model: timm's ``pretrained_cfg`` is read; else the first convolution and 224 x 224.
        input_size: the user's word: a side, (height, width) or (channels, height, width).

    Raises:
        FoveateError: ``input_size`` is none of these.
    """
    _, height, width = pretrained_config(model).get("input_size", (3, 224, 224))
    channels = channels_of(model)
    if input_size is None:
        return channels, height, width
    size = tuple(input_size) if isinstance(input_size, tuple | list) else (input_size,)
    if not 1 <= len(size) <= 3 or not all(type(side) is int and side > 0 for side in size):
        raise FoveateError(f"input_size={input_size!r}: write a side, (height, width) or (channels, height, width)")
    if len(size) == 1:
        return channels, size[0], size[0]
    return (channels, *size) if len(size) == 2 else size  # type: ignore[return-value]


def _is_foreign(hook: object) -> bool:
    # Hooks of torch.nn.utils compute weights, timm's collect features, ours attend: they are part of the network.
    # A user's own hooks watch it.
    while isinstance(hook, functools.partial):
        hook = hook.func
    module = getattr(hook, "__module__", "") or type(hook).__module__
    return not module.startswith(("torch.nn.", "timm.", "foveate.surgery."))


def _foreign_hooks(module: nn.Module) -> Iterator[tuple[dict[int, Any], int, Any]]:
    for attribute in _HOOKS:
        hooks = getattr(module, attribute)
        for key, hook in list(hooks.items()):
            if _is_foreign(hook):
                yield hooks, key, hook


def copied(model: nn.Module, *, data: bool) -> nn.Module:
    """A copy in eval mode, with data or as a skeleton, without the user's own hooks: they are not run."""
    record = record_of(model)
    roots = [model, *(removed.module for removed in record.removed.values())] if record else [model]
    memo: dict[int, Any] = {}
    for module in (module for root in roots for module in root.modules()):
        memo.update({id(hook): hook for _, _, hook in _foreign_hooks(module)})
        for value in vars(module).values():
            if isinstance(value, Tensor):  # such as a feature map that the module keeps, which has a history
                memo[id(value)] = value.detach().clone() if data else value.detach().to("meta")
            elif type(value) in (dict, OrderedDict) and not value:  # most of a module, and slow to copy one by one
                memo[id(value)] = type(value)()
    for root in roots if not data else []:
        for parameter in root.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        for buffer in root.buffers():
            memo[id(buffer)] = buffer.detach().to("meta")
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for hooks, key, _ in _foreign_hooks(module):
            del hooks[key]
    return copied.eval()


def on_a_copy(model: nn.Module, task: Callable[[nn.Module], Result]) -> tuple[Result, nn.Module]:
    """Do a task on a skeleton of a model; where that fails, on a copy with data, whose failure is the real one.

    Args:
        model: left as found, the state of the random number generators too.
        task: it may change the copy, which is in eval mode.

    Returns:
        The task's result, and the copy.

    Raises:
        FoveateError: the model has lazy layers that have not run; or what the task raises.
        Exception: whatever else the task raises on the copy with data.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise FoveateError(f"{type(model).__name__} has lazy layers without weights: run it once on an image first")
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            bones = copied(model, data=False)
            return task(bones), bones
        except FoveateError:
            raise
        except Exception as error:  # noqa: BLE001 - without data anything may fail; below is the real reason
            logger.debug("%s does not run without data: %s", type(model).__name__, first_line(error))
        twin = copied(model, data=True)
        return task(twin), twin


class _QuickShapes(TorchFunctionMode):
    """Without data, torch works out what these give in Python, most of a pass; it has the shape of their input."""

    quick = frozenset({F.batch_norm, F.hardsigmoid, F.hardswish, F.hardtanh, F.relu6})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.quick and args[0].is_meta:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def run_once(model: nn.Module, size: tuple[int, int, int]) -> None:
    """Run a copy on one image of zeros, (1, C, H, W), in the copy's dtype and on its device, without gradients."""
    device, dtype = device_and_dtype(model)
    with torch.no_grad(), _QuickShapes():
        model(torch.zeros(1, *size, dtype=dtype, device=device))


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def run(model: nn.Module, size: tuple[int, int, int]) -> dict[str, Seen]:
    """Run a copy once, with a hook on every module, and report what each gave.

    Raises:
        Exception: whatever the model raises.
    """
    seen = {name: Seen() for name, _ in model.named_modules()}
    order = itertools.count()
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> None:  # noqa: ARG001
            entry = seen[name]
            entry.calls += 1
            entry.in_shape = _shape(args[0]) if len(args) == 1 else None
            entry.out_shape, entry.out_type, entry.order = _shape(output), type(output).__name__, next(order)

        return hook

    try:
        for name, module in model.named_modules():
            # In front of the attention's own hook, so that a site shows what the network itself gives.
            handles.append(module.register_forward_hook(watch(name), prepend=True))
        run_once(model, size)
    finally:
        for handle in handles:
            handle.remove()
    _find_layouts(seen, size)
    return seen


def _find_layouts(seen: dict[str, Seen], size: tuple[int, int, int]) -> None:
    """Tell (1, H, W, C) from (1, C, H, W): the two sides that have the image's proportions are the places.

    Where both pairs have them, as in 64 x 64 x 64, a map is as most others of the network are.
    """

    def spatial(height: int, width: int) -> bool:
        # Each stride-2 step may round a side up or down, by less than one place in the end.
        return abs(height / size[1] - width / size[2]) <= 1 / min(size[1:])

    undecided, votes = [], 0
    for entry in seen.values():
        if entry.out_shape is None or len(entry.out_shape) != 4:
            continue
        _, one, two, three = entry.out_shape
        first, last = spatial(one, two), spatial(two, three)
        entry.nhwc = first and not last
        votes += (entry.nhwc and two > 1) - (last and not first)
        if first and last and two > 1:
            undecided.append(entry)
    for entry in undecided:
        entry.nhwc = votes > 0


def probe(
    model: nn.Module, input_size: int | tuple[int, ...] | None = None, *, plain: bool = False
) -> tuple[dict[str, Seen], nn.Module]:
    """What each module gives, by dotted name, and the copy that showed it.

    Args:
        model: left as found.
        input_size: as in ``input_size_of``.
        plain: take the model's plan out of the copy first.

    Raises:
        FoveateError: the model cannot be copied, or cannot run on an image of this size.
    """
    size = input_size_of(model, input_size)
    try:
        return on_a_copy(model, lambda net: run(take_out(net) if plain else net, size))
    except FoveateError:
        raise
    except Exception as error:
        raise FoveateError(
            f"a copy of {type(model).__name__} cannot run on an image of {size[0]} x {size[1]} x {size[2]} "
            f"(channels x height x width): {first_line(error)}; give the right input_size"
        ) from error
