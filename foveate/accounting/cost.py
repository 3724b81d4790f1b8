"""Cost of a network and of its plan, counted exactly or as the compact-CNN papers count.

1 MAC is one multiply-add, which those papers print as one FLOP. ``activations`` are the elements that convolutions
and matrix products write for one image (Radosavovic et al., Designing Network Design Spaces, CVPR 2020).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import nn

from foveate.accounting.count import Tally, tally
from foveate.accounting.memory import saved_bytes
from foveate.accounting.rows import ModuleCost, rows_of
from foveate.accounting.shares import time_shares
from foveate.errors import FoveateError, first_line, near
from foveate.surgery import attentions, plan_of
from foveate.surgery.graft import part, record_of, take_out
from foveate.surgery.holders import HeadPlace, Replacement
from foveate.surgery.insert import replaced_by
from foveate.surgery.probe import copied, input_size_of, on_a_copy, probe

__all__ = ["Cost", "ModuleCost", "cost"]

Size = tuple[int, int, int]  # (channels, height, width)
Result = TypeVar("Result")
logger = logging.getLogger("foveate")
COUNTINGS = ("exact", "paper")

# (parameters, MACs) of the real network at 224 x 224 -> what the papers print for it.
PRINTED: dict[tuple[int, int], tuple[int, int]] = {
    (4_231_976, 568_740_352): (4_200_000, 569_000_000),  # MobileNetV1, Howard et al. 2017
    (2_585_560, 325_400_448): (2_600_000, 325_000_000),  # MobileNetV1 x0.75
    (1_331_592, 149_497_088): (1_300_000, 149_000_000),  # MobileNetV1 x0.5
    (3_504_872, 300_774_272): (3_400_000, 300_000_000),  # MobileNetV2, Sandler et al. 2018
}
_ADDED_UP = (
    *("params", "macs", "activations", "element_ops", "bytes_moved"),
    *("activation_bytes_inference", "activation_bytes_training"),
)


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one image costs. Costs of one counting can be added and subtracted.

    ``paper`` counting has parameters and MACs alone; everything else is 0 there.

    Args:
        params: parameters.
        macs: multiply-adds of matrix products, convolutions and attention products.
        activations: elements that these write.
        counting: ``exact`` or ``paper``.
        baseline: the same network without its plan; None when it carries none.
        element_ops: element operations: softmax, pooling, norms, activation functions, sums and products of elements.
        bytes_moved: bytes that operations read and write, each input and output once, in the network's dtype.
        activation_bytes_inference: the most bytes of tensors alive at once in inference, without parameters and
            buffers.
        activation_bytes_training: bytes that autograd keeps for the backward pass, without parameters and buffers.
        modules: a row for each module, what contains it first; empty for sums and differences.
        uncounted: operations that the network runs and that have no formula.
    """

    params: int
    macs: int
    activations: int
    counting: str = "exact"
    baseline: Cost | None = field(default=None, compare=False)
    element_ops: int = field(default=0, kw_only=True)
    bytes_moved: int = field(default=0, kw_only=True)
    activation_bytes_inference: int = field(default=0, kw_only=True)
    activation_bytes_training: int = field(default=0, kw_only=True)
    modules: tuple[ModuleCost, ...] = field(default=(), kw_only=True, compare=False, repr=False)
    uncounted: tuple[str, ...] = field(default=(), kw_only=True, compare=False)

    def __sub__(self, other: Cost) -> Cost:
        return self._plus(other, -1)

    def __add__(self, other: Cost) -> Cost:
        return self._plus(other, 1)

    def _plus(self, other: Cost, sign: int) -> Cost:
        if self.counting != other.counting:
            raise FoveateError(f"cannot take {self.counting!r} and {other.counting!r} together: count both in one way")
        numbers = {name: getattr(self, name) + sign * getattr(other, name) for name in _ADDED_UP}
        uncounted = tuple(sorted({*self.uncounted, *other.uncounted}))
        return Cost(**numbers, counting=self.counting, uncounted=uncounted)

    def __str__(self) -> str:
        text = f"{self.params:,} parameters, {self.macs:,} MACs"
        text += f", {self.activations:,} activations" if self.counting == "exact" else ", counted as the papers do"
        if self.baseline is None:
            return text
        plus = self - self.baseline
        return f"{text} (the plan: {plus.params:+,} parameters, {plus.macs:+,} MACs)"


def cost(
    model: nn.Module, input_size: int | tuple[int, ...] | None = None, *, counting: str = "exact", time: bool = False
) -> Cost:
    """Count what a model costs, beside the same model without its plan.

    Args:
        model: left as found.
        input_size: a side, (height, width) or (channels, height, width) in pixels; without it the model's own.
        counting: ``exact`` counts every parameter and every operation of the real modules. ``paper`` counts as the
            ULSAM paper does: the baseline as its authors print it, where it is known; a replaced block counts its
            convolution weights only; a mechanism counts the paper's formula.
        time: measure the share of time that each module takes, too, on a copy with one random image: ``time_share``
            in the rows.

    Returns:
        The cost; its ``baseline`` is that of the network without the plan.

    Raises:
        FoveateError: the counting does not exist or has no rows to time, or the model cannot run on an image of this
            size.
    """
    if time and counting != "exact":
        raise FoveateError(f"time is measured module by module, and {counting} counting has totals only: count exactly")
    if counting not in COUNTINGS:
        raise FoveateError(f"counting={counting!r} does not exist; {near(counting, COUNTINGS)}")
    size = input_size_of(model, input_size)
    planned = plan_of(model) is not None
    if counting == "exact":
        found = _exact(model, size, time=time)
        return replace(found, baseline=_exact(model, size, plain=True, time=time)) if planned else found
    params, whole = _on_a_copy(model, size, _counted)
    if not planned:
        return _printed(params, whole)
    baseline, parts = _on_a_copy(model, size, _counted, plain=True)
    printed = _printed(baseline, parts)
    params, macs = printed.params, printed.macs
    for site, block in replaced_by(model).items():
        convolutions = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
        params -= convolutions or _parameters(block)  # a classifier has none
        macs -= parts[site].macs
    for added, multiplied in _mechanisms(model, size, whole):
        params, macs = params + added, macs + multiplied
    return Cost(params, macs, 0, "paper", printed)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _on_a_copy(
    model: nn.Module, size: Size, task: Callable[[nn.Module, Size], Result], *, plain: bool = False
) -> Result:
    """A task on a copy of a network, with or without its plan."""
    try:
        return on_a_copy(model, lambda net: task(take_out(net) if plain else net, size))[0]
    except Exception as error:
        channels, height, width = size
        raise FoveateError(
            f"cannot count {type(model).__name__} on an image of {channels} x {height} x {width} "
            f"(channels x height x width): {first_line(error)}"
        ) from error


def _counted(net: nn.Module, size: Size) -> tuple[int, dict[str, Tally]]:
    return _parameters(net), tally(net, size)


def _exact(model: nn.Module, size: Size, *, plain: bool = False, time: bool = False) -> Cost:
    """Everything that is counted, of a network with or without its plan."""
    record = record_of(model)
    # What was replaced stays so as long as the holder stands there.
    replaced = [site for site in record.removed if _holds(part(model, site))] if record else []
    changed = replaced if plain or not record else [*replaced, *(at.path for at in record.placed)]

    def task(net: nn.Module, size: Size) -> tuple[Cost, bool]:
        tallies = tally(net, size)
        whole = tallies[""]
        rows = rows_of(net, tallies, changed, "removed" if plain else "added")
        try:
            kept = saved_bytes(net.train(), size)
        except Exception as error:  # noqa: BLE001 - without data or labels anything may fail; it is tried again
            logger.debug("%s does not train on this copy: %s", type(model).__name__, first_line(error))
            kept = None
        found = Cost(
            rows[0].params,
            whole.macs,
            whole.activations,
            element_ops=whole.element_ops,
            bytes_moved=rows[0].bytes_moved,
            activation_bytes_inference=whole.peak_bytes,
            activation_bytes_training=kept or 0,
            modules=rows,
            uncounted=tuple(sorted(whole.uncounted)),
        )
        return found, kept is not None

    found, trains = _on_a_copy(model, size, task, plain=plain)
    if time:
        found = replace(found, modules=_timed(model, size, found.modules, plain=plain))
    return found if trains else replace(found, activation_bytes_training=_saved(model, size, plain=plain))


def _timed(model: nn.Module, size: Size, rows: tuple[ModuleCost, ...], *, plain: bool) -> tuple[ModuleCost, ...]:
    """The rows with their shares of time."""
    net = copied(model, data=True)
    shares = time_shares(take_out(net) if plain else net, size)
    return tuple(replace(row, time_share=shares[row.name]) for row in rows)


def _saved(model: nn.Module, size: Size, *, plain: bool) -> int:
    """What autograd keeps, of a network that does not train without data: with data, or else in eval mode."""
    try:
        return _on_a_copy(model, size, lambda net, size: saved_bytes(net.train(), size), plain=plain)
    except FoveateError as error:
        name = type(model).__name__
        logger.warning("%s does not run in training mode; its training activations are eval mode's: %s", name, error)
        return _on_a_copy(model, size, saved_bytes, plain=plain)


def _holds(module: nn.Module | None) -> bool:
    return isinstance(module, Replacement | HeadPlace)


def _printed(params: int, tallies: dict[str, Tally]) -> Cost:
    counted = params, tallies[""].macs
    return Cost(*PRINTED.get(counted, counted), 0, "paper")


def _mechanisms(model: nn.Module, size: Size, whole: dict[str, Tally]) -> Iterator[tuple[int, int]]:
    """(parameters, MACs) of each inserted mechanism: its paper's formula, or the real module's where it has none."""
    record = record_of(model)
    seen, _ = probe(model, size)
    paths = [at.path for at in record.placed] if record else []
    for path, mechanism in zip(paths, attentions(model).values(), strict=True):
        formula = getattr(mechanism, "paper_cost", None)
        shape = seen[path].out_shape
        if formula is not None and shape is not None:
            yield formula(*shape[1:])
        else:
            yield _parameters(mechanism), whole[path].macs
