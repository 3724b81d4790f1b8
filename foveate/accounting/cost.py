"""Cost of a network and of its plan, counted exactly or as the compact-CNN papers count.

1 MAC is one multiply-add, which those papers print as one FLOP. ``activations`` are the elements that convolutions
and matrix products write for one image (Radosavovic et al., Designing Network Design Spaces, CVPR 2020).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import nn

from foveate.accounting.counting.dispatch_counter import tally
from foveate.accounting.counting.given import network_in
from foveate.accounting.counting.paper import Counted, as_printed, parameters_of, with_the_plan
from foveate.accounting.memory import saved_bytes
from foveate.accounting.profiling.module_times import time_shares
from foveate.accounting.rows import ModuleCost, rows_of
from foveate.errors import FoveateError, first_line, near
from foveate.surgery.apply import undo
from foveate.surgery.insert import plan_of
from foveate.surgery.model_copy import copied, on_a_copy
from foveate.surgery.record import part, record_of
from foveate.surgery.trace import input_size_of
from foveate.surgery.wrappers import HeadWrapper, Replacement

__all__ = ["Cost", "ModuleCost", "cost"]

Size = tuple[int, int, int]  # (channels, height, width)
Result = TypeVar("Result")
logger = logging.getLogger("foveate")
COUNTINGS = ("exact", "paper")

_ADDED_UP = (
    *("params", "macs", "activations", "element_ops", "bytes_moved"),
    *("activation_bytes_inference", "activation_bytes_training"),
)


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one image costs. Costs of one counting can be added and subtracted.

    ``paper`` counting has parameters and MACs alone; everything else is 0 there. An exact cost has both: its ``paper``
    is the other counting of the same network.

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
        paper: of an exact cost, the same in ``paper`` counting, with a baseline of its own.
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
    paper: Cost | None = field(default=None, kw_only=True, compare=False, repr=False)

    def __sub__(self, other: Cost) -> Cost:
        return self._plus(other, -1)

    def __add__(self, other: Cost) -> Cost:
        return self._plus(other, 1)

    def _plus(self, other: Cost, sign: int) -> Cost:
        if self.counting != other.counting:
            raise FoveateError(f"cannot take {self.counting!r} and {other.counting!r} together: count both in one way")
        numbers = {name: getattr(self, name) + sign * getattr(other, name) for name in _ADDED_UP}
        uncounted = tuple(sorted({*self.uncounted, *other.uncounted}))
        paper = None if self.paper is None or other.paper is None else self.paper._plus(other.paper, sign)
        return Cost(**numbers, counting=self.counting, uncounted=uncounted, paper=paper)

    def __str__(self) -> str:
        text = f"{self.params:,} parameters, {self.macs:,} MACs"
        text += f", {self.activations:,} activations" if self.counting == "exact" else ", counted as the papers do"
        if self.baseline is not None:
            plus = self - self.baseline
            text += f" (the plan: {plus.params:+,} parameters, {plus.macs:+,} MACs)"
        return f"{text}; not counted: {', '.join(self.uncounted)}" if self.uncounted else text


def cost(
    model: nn.Module, input_size: int | tuple[int, ...] | None = None, *, counting: str = "exact", time: bool = False
) -> Cost:
    """Count what a model costs, beside the same model without its plan.

    Args:
        model: left as found. What ``torch.compile`` or data parallelism put around a network is looked through.
        input_size: a side, (height, width) or (channels, height, width) in pixels; without it the model's own.
        counting: ``exact`` counts every parameter and every operation of the real modules; the cost's ``paper`` has the
            other counting, too. ``paper`` counts only that, as the ULSAM paper does: the baseline as its authors print
            it, where it is known; a replaced block counts its convolution weights only; a mechanism counts the paper's
            formula.
        time: measure the share of time that each module takes, too, on a copy with one random image: ``time_share``
            in the rows.

    Returns:
        The cost; its ``baseline`` is that of the network without the plan.

    Raises:
        FoveateError: it is no network, the counting does not exist or has no rows to time, or the model cannot run on
            an image of this size.
    """
    if time and counting != "exact":
        raise FoveateError(f"time is measured module by module, and {counting} counting has totals only: count exactly")
    if counting not in COUNTINGS:
        raise FoveateError(f"counting={counting!r} does not exist; {near(str(counting), COUNTINGS)}")
    model = network_in(model)
    size = input_size_of(model, input_size)
    planned = plan_of(model) is not None
    with torch.inference_mode(mode=False):  # where autograd keeps nothing
        if counting == "paper":
            whole = _on_a_copy(model, size, _counted)
            return _paper(model, size, whole, _on_a_copy(model, size, _counted, plain=True) if planned else None)
        found = _exact(model, size, time=time)
        if not planned:
            return replace(found, paper=_paper(model, size, _totals(found), None))
        baseline = _exact(model, size, plain=True, time=time)
        paper = _paper(model, size, _totals(found), _totals(baseline))
        return replace(found, baseline=replace(baseline, paper=paper.baseline), paper=paper)


def _counted(net: nn.Module, size: Size) -> Counted:
    return Counted(parameters_of(net), {name: found.macs for name, found in tally(net, size).items()})


def _totals(exact: Cost) -> Counted:
    return Counted(exact.params, {row.name: row.macs for row in exact.modules})


def _paper(model: nn.Module, size: Size, whole: Counted, plain: Counted | None) -> Cost:
    """In the papers' counting, from exact numbers with and, where there is a plan, without it."""
    printed = Cost(*as_printed(plain or whole), 0, "paper")
    return printed if plain is None else Cost(*with_the_plan(model, size, whole, plain), 0, "paper", printed)


def _on_a_copy(
    model: nn.Module, size: Size, task: Callable[[nn.Module, Size], Result], *, plain: bool = False
) -> Result:
    """A task on a copy of a network, with or without its plan."""
    try:
        return on_a_copy(model, lambda net: task(undo(net) if plain else net, size))[0]
    except FoveateError:
        raise
    except Exception as error:
        channels, height, width = size
        reason = first_line(error)
        if "HigherOrderOperator" in reason:  # followed by many words on how to write a counter
            reason = "it calls what torch.compile alone can run, such as flex_attention: nothing is known of its cost"
        raise FoveateError(
            f"cannot count {type(model).__name__} on an image of {channels} x {height} x {width} "
            f"(channels x height x width): {reason}"
        ) from error


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
    shares = time_shares(undo(net) if plain else net, size)
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
    return isinstance(module, Replacement | HeadWrapper)
