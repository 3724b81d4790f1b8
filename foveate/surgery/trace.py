"""One forward pass that tells which module gives which shape, on a copy of the model: the model itself never runs.

The tensors of the first copy have shapes and no data (device "meta"). Where an operation of the network cannot run so,
a copy with data is run on zeros.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from foveate.errors import FoveateError, first_line
from foveate.model_info import device_and_dtype, pretrained_config
from foveate.networks.create import channels_of
from foveate.surgery.apply import undo
from foveate.surgery.model_copy import on_a_copy

__all__ = ["ModuleTrace", "input_size_of", "probe", "run", "run_once"]

_CHANNELS_FIRST = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.modules.batchnorm._BatchNorm, nn.InstanceNorm2d, nn.GroupNorm),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample),
)


@dataclass
class ModuleTrace:
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
    return (channels, *size) if len(size) == 2 else size  # type: ignore[return-value]  # its length was checked


class _ShapesOnly(TorchFunctionMode):
    """Gives most layers' outputs by their shape, without computing them.

    Without data, torch works out what these functions give in Python, most of a pass. With data they are most of a
    pass, too, and the shapes are what is asked: zeros stand for what they would give, of an image of zeros.
    """

    like_input = frozenset({F.batch_norm, F.hardsigmoid, F.hardswish, F.hardtanh, F.relu6})
    products = frozenset({torch.conv1d, torch.conv2d, torch.conv_transpose2d, F.conv2d, F.conv_transpose2d, F.linear})

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func in self.like_input:
            return torch.empty_like(args[0]) if args[0].is_meta else torch.zeros_like(args[0])
        plain = all(type(each) in (Tensor, nn.Parameter) for each in args[:2])
        if func in self.products and plain and not args[0].is_meta and args[0].numel():
            without = [each.to("meta") if isinstance(each, Tensor) else each for each in args]
            named = {name: each.to("meta") if isinstance(each, Tensor) else each for name, each in kwargs.items()}
            shape = func(*without, **named).shape
            return torch.zeros(shape, dtype=args[0].dtype, device=args[0].device)
        return func(*args, **kwargs)


def run_once(model: nn.Module, size: tuple[int, int, int], *, shapes_only: bool = True) -> None:
    """Run a copy on one image of zeros, (1, C, H, W), in the copy's dtype and on its device, without gradients."""
    device, dtype = device_and_dtype(model)
    with torch.no_grad(), _ShapesOnly() if shapes_only else contextlib.nullcontext():
        model(torch.zeros(1, *size, dtype=dtype, device=device))


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def run(model: nn.Module, size: tuple[int, int, int]) -> dict[str, ModuleTrace]:
    """Run a copy once, with a hook on every module, and report what each gave.

    Raises:
        Exception: whatever the model raises.
    """
    try:
        return _run(model, size, shapes_only=True)
    except Exception:
        if device_and_dtype(model)[0].type == "meta":
            raise
    return _run(model, size, shapes_only=False)  # it may look at values


def _run(model: nn.Module, size: tuple[int, int, int], *, shapes_only: bool) -> dict[str, ModuleTrace]:
    traces = {name: ModuleTrace() for name, _ in model.named_modules()}
    order = itertools.count()
    handles = []

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(_module: nn.Module, args: tuple[object, ...], output: object) -> None:
            entry = traces[name]
            entry.calls += 1
            entry.in_shape = _shape(args[0]) if len(args) == 1 else None
            entry.out_shape, entry.out_type, entry.order = _shape(output), type(output).__name__, next(order)

        return hook

    try:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            # In front of the attention's own hook, so that a site shows what the network itself gives.
            handles.append(module.register_forward_hook(watch(name), prepend=True))
        run_once(model, size, shapes_only=shapes_only)
    finally:
        for handle in handles:
            handle.remove()
    _find_layouts(model, traces, size)
    return traces


def _find_layouts(model: nn.Module, traces: dict[str, ModuleTrace], size: tuple[int, int, int]) -> None:
    """Tell (1, H, W, C) from (1, C, H, W).

    What a convolution, a norm or a pool gives has the channels first, and so has a map of the shape of one of these;
    one of such a shape with the channels moved to its end has them last. Of any other map, the two sides that have the
    image's proportions are the positions: no channels are beside them, but strides may differ by axis. Where both pairs
    have them, as in 64 x 64 x 64, a map is as most others of the network are.
    """

    def spatial(height: int, width: int) -> bool:
        # Each stride-2 step may round a side up or down, by less than one position in the end.
        return abs(height / size[1] - width / size[2]) <= 1 / min(size[1:])

    first_by_kind = {name for name, module in model.named_modules() if _channels_first(module, traces[name])}
    known = {shape for name in first_by_kind if (shape := traces[name].out_shape) is not None}
    moved = {(batch, height, width, channels) for batch, channels, height, width in known}
    undecided, votes = [], 0
    for name, entry in traces.items():
        if entry.out_shape is None or len(entry.out_shape) != 4:
            continue
        _, one, two, three = entry.out_shape
        first, last = spatial(one, two), spatial(two, three)
        # By its shape 1: the channels are last, -1: first, 0: either.
        shaped = (entry.out_shape in moved) - (entry.out_shape in known)
        entry.nhwc = name not in first_by_kind and (shaped > 0 or (shaped == 0 and first and not last))
        votes += (entry.nhwc and two > 1) - (last and not first)
        if name not in first_by_kind and shaped == 0 and first and last and two > 1:
            undecided.append(entry)
    for entry in undecided:
        entry.nhwc = votes > 0


def _channels_first(module: nn.Module, entry: ModuleTrace) -> bool:
    """Whether a module's kind says that its map is (1, C, H, W); one of a subclass may give another."""
    if not isinstance(module, _CHANNELS_FIRST) or entry.out_shape is None or len(entry.out_shape) != 4:
        return False
    given = entry.in_shape[1] if entry.in_shape is not None and len(entry.in_shape) == 4 else None
    counts = (getattr(module, key, None) for key in ("out_channels", "num_features", "num_channels"))
    return entry.out_shape[1] == next((count for count in counts if count is not None), given)


def probe(
    model: nn.Module, input_size: int | tuple[int, ...] | None = None, *, plain: bool = False
) -> tuple[dict[str, ModuleTrace], nn.Module]:
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
        return on_a_copy(model, lambda net: run(undo(net) if plain else net, size))
    except FoveateError:
        raise
    except Exception as error:
        raise FoveateError(
            f"a copy of {type(model).__name__} cannot run on an image of {size[0]} x {size[1]} x {size[2]} "
            f"(channels x height x width): {first_line(error)}; if it takes images of another size, give input_size"
        ) from error
