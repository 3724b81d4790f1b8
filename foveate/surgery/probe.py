"""One forward pass that tells which module gives which shape, without touching the model.

A skeleton, a copy whose tensors have shapes and no data (device "meta"), is run in place of the model. Where an
operation of the network cannot run so, the model itself is run once on zeros, in eval mode, and left as it was.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["Record", "Removed", "Seen", "eval_mode", "example", "input_size_of", "probe", "record_of", "run", "skeleton"]

ATTRIBUTE = "_foveate"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class Removed:
    """A block that a placement replaced: kept so that ``remove`` can put it back."""

    module: nn.Module
    original: bool  # False when its weights were never those of the caller's model, as after ``load``


@dataclass
class Record:
    """What ``insert`` did to a model; it travels with copies of the model and is not part of its state dict."""

    plan: Any
    placed: tuple[tuple[str, str, str], ...]  # (site, verb, dotted name of the attention module)
    removed: dict[str, Removed]


def record_of(model: nn.Module) -> Record | None:
    """The model's record, or None when it carries no plan."""
    record: Record | None = getattr(model, ATTRIBUTE, None)
    return record


@dataclass
class Seen:
    """What one forward pass showed of one module. Shapes include the batch of 1; None: not a single tensor."""

    calls: int = 0
    in_shape: tuple[int, ...] | None = None
    out_shape: tuple[int, ...] | None = None
    out_type: str = ""


def input_size_of(model: nn.Module, input_size: int | tuple[int, ...] | None = None) -> tuple[int, int, int]:
    """(channels, height, width) of the images a model takes.

    Args:
        model: timm's ``pretrained_cfg`` is read; else the first convolution and 224 x 224.
        input_size: the user's word: a side, (height, width) or (channels, height, width).

    Raises:
        FoveateError: ``input_size`` is none of these.
    """
    config = getattr(model, "pretrained_cfg", None)
    known = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
    channels, height, width = known or (3, 224, 224)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None:
        channels = first.in_channels
    if input_size is None:
        return channels, height, width
    size = (input_size,) if isinstance(input_size, int) else tuple(input_size)
    if not 1 <= len(size) <= 3 or not all(isinstance(side, int) and side > 0 for side in size):
        raise FoveateError(f"input_size={input_size!r}: write a side, (height, width) or (channels, height, width)")
    if len(size) == 1:
        return channels, size[0], size[0]
    return (channels, *size) if len(size) == 2 else size  # type: ignore[return-value]


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode again outside."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _is_foreign(hook: object) -> bool:
    # The hooks of torch.nn.utils compute weights and ours are part of the network; a user's own hooks watch it.
    module = getattr(hook, "__module__", "") or type(hook).__module__
    return not module.startswith(("torch.nn.", "foveate.", "functools"))


def skeleton(model: nn.Module) -> nn.Module:
    """A copy in eval mode with the same modules and shapes, no data, and without the user's own hooks."""
    memo: dict[int, Any] = {}
    record = record_of(model)
    roots = [model, *(removed.module for removed in record.removed.values())] if record else [model]
    for root in roots:
        for parameter in root.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        for buffer in root.buffers():
            memo[id(buffer)] = buffer.detach().to("meta")
    bones = copy.deepcopy(model, memo)
    for module in bones.modules():
        for attribute in _HOOKS:
            hooks = getattr(module, attribute)
            for key in [key for key, hook in hooks.items() if _is_foreign(hook)]:
                del hooks[key]
    return bones.eval()


def example(model: nn.Module, size: tuple[int, int, int], device: str | None = None) -> Tensor:
    """One image of zeros, (1, C, H, W), in the dtype and on the device of the model."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *size, dtype=parameter.dtype, device=device or parameter.device)


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def run(model: nn.Module, size: tuple[int, int, int]) -> dict[str, Seen]:
    """Run a model once on zeros, with a hook on every module, and report what each gave.

    Raises:
        Exception: whatever the model raises.
    """
    seen = {name: Seen() for name, _ in model.named_modules()}
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> None:  # noqa: ARG001
            entry = seen[name]
            entry.calls += 1
            entry.in_shape = _shape(args[0]) if len(args) == 1 else None
            entry.out_shape, entry.out_type = _shape(output), type(output).__name__

        return hook

    try:
        for name, module in model.named_modules():
            # In front of the attention's own hook, so that a site shows what the network itself gives.
            handles.append(module.register_forward_hook(watch(name), prepend=True))
        with torch.no_grad():
            model(example(model, size))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def probe(model: nn.Module, input_size: int | tuple[int, ...] | None = None) -> tuple[dict[str, Seen], nn.Module | None]:
    """What each module gives, by dotted name, and the skeleton that showed it.

    Args:
        model: left as found.
        input_size: as in ``input_size_of``.

    Returns:
        The report, and the skeleton, or None when the model itself had to be run.

    Raises:
        FoveateError: the model cannot run on an image of this size.
    """
    size = input_size_of(model, input_size)
    try:
        bones = skeleton(model)
        return run(bones, size), bones
    except Exception:  # noqa: BLE001 - anything may fail without data; the real run below gives the real reason
        pass
    try:
        with torch.random.fork_rng(devices=[]), eval_mode(model):
            return run(model, size), None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FoveateError(
            f"{type(model).__name__} cannot run on an image of {size[0]} x {size[1]} x {size[2]} "
            f"(channels x height x width): {reason}; give the right input_size"
        ) from error
