"""Cost of a network and of its plan, counted exactly or as the compact-CNN papers count.

1 MAC is one multiply-add, which those papers print as one FLOP. ``activations`` are the elements that convolutions
and matrix products write for one image (Radosavovic et al., Designing Network Design Spaces, CVPR 2020).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

import torch
from torch import nn

from foveate.accounting.cost_html import LABELS, cost_html
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.accounting.counting.forward import network_of
from foveate.accounting.counting.paper import Counted, as_printed, parameters_of, with_the_plan
from foveate.accounting.memory import saved_bytes
from foveate.accounting.module_cost import ModuleCost, module_costs, with_removed
from foveate.accounting.profiling.module_times import time_fractions
from foveate.errors import FoveateError, first_line, near
from foveate.preserve import preserve_state
from foveate.surgery.apply import undo
from foveate.surgery.insert import plan_of, replaced_by
from foveate.surgery.model_copy import copied, on_a_copy
from foveate.surgery.record import part, record_of
from foveate.surgery.trace import input_size_of

__all__ = ["Cost", "ModuleCost", "cost", "dropped"]

Size = tuple[int, int, int]  # (channels, height, width)
Result = TypeVar("Result")
logger = logging.getLogger("foveate")
COUNTINGS = ("exact", "paper")

_ADDED_UP = (
    *("params", "macs", "macs_inference", "activations", "element_ops", "bytes_moved"),
    *("activation_bytes_inference", "activation_bytes_training"),
)


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one image costs. Costs of one counting can be added and subtracted.

    ``paper`` counting has parameters and MACs alone; everything else is 0 there. An exact cost has both: its ``paper``
    is the other counting of the same network.

    Args:
        params: parameters.
        macs: multiply-adds of matrix products, convolutions and attention products, of the forward pass as the modules
            define it.
        activations: elements that these write.
        counting: ``exact`` or ``paper``.
        baseline: the same network without its plan; None when it carries none.
        element_ops: element operations: softmax, pooling, norms, activation functions, sums and products of elements.
        bytes_moved: bytes that operations read and write, each input and output once, in the network's dtype.
        macs_inference: multiply-adds that inference runs, where modules of ours take others than their definition;
            without what ``double`` does on a CPU.
        activation_bytes_inference: the peak of live memory in inference, without parameters and buffers.
        activation_bytes_training: bytes that autograd saves for the backward pass, without parameters and buffers.
        modules: a row for each module, what contains it first; empty for sums and differences.
        unsupported: operations that the network runs and that have no formula.
        paper: of an exact cost, the same in ``paper`` counting, with a baseline of its own.
    """

    labels: ClassVar[Mapping[str, str]] = LABELS  # what each of the numbers is called
    params: int
    macs: int
    activations: int
    counting: str = "exact"
    baseline: Cost | None = field(default=None, compare=False)
    macs_inference: int = field(default=0, kw_only=True)
    element_ops: int = field(default=0, kw_only=True)
    bytes_moved: int = field(default=0, kw_only=True)
    activation_bytes_inference: int = field(default=0, kw_only=True)
    activation_bytes_training: int = field(default=0, kw_only=True)
    modules: tuple[ModuleCost, ...] = field(default=(), kw_only=True, compare=False, repr=False)
    unsupported: tuple[str, ...] = field(default=(), kw_only=True, compare=False)
    paper: Cost | None = field(default=None, kw_only=True, compare=False, repr=False)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The former name of ``unsupported``."""
        warnings.warn("Cost.uncounted is now called unsupported", DeprecationWarning, stacklevel=2)
        return self.unsupported

    def __sub__(self, other: Cost) -> Cost:
        return self._plus(other, -1)

    def __add__(self, other: Cost) -> Cost:
        return self._plus(other, 1)

    def _plus(self, other: Cost, sign: int) -> Cost:
        if self.counting != other.counting:
            raise FoveateError(
                f"costs of {self.counting!r} and {other.counting!r} counting cannot be added: count both in one way"
            )
        numbers = {name: getattr(self, name) + sign * getattr(other, name) for name in _ADDED_UP}
        unsupported = tuple(sorted({*self.unsupported, *other.unsupported}))
        paper = None if self.paper is None or other.paper is None else self.paper._plus(other.paper, sign)
        return Cost(**numbers, counting=self.counting, unsupported=unsupported, paper=paper)

    @property
    def rows(self) -> tuple[ModuleCost, ...]:
        """The modules, and before what the plan put in a block's place those of the block."""
        return with_removed(self.modules, self.baseline.modules if self.baseline else ())

    def _repr_html_(self) -> str:
        columns: dict[str, Cost] = {"": self}
        if self.baseline is not None:
            columns = {"with the plan": self, "without": self.baseline, "difference": self - self.baseline}
        return cost_html(self.counting, columns, self.rows, self.unsupported)

    def __str__(self) -> str:
        text = f"{self.params:,} parameters, {self.macs:,} MACs"
        if self.macs_inference and self.macs_inference != self.macs:
            text += f" (inference runs {self.macs_inference:,})"
        text += f", {self.activations:,} activations" if self.counting == "exact" else ", counted as the papers do"
        if self.baseline is not None:
            plus = self - self.baseline
            text += f" (the plan: {plus.params:+,} parameters, {plus.macs:+,} MACs)"
        return f"{text}; unsupported operations: {', '.join(self.unsupported)}" if self.unsupported else text


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
        time: measure the fraction of time that each module takes, too, on a copy with one random image:
            ``time_share`` in the rows.

    Returns:
        The cost; its ``baseline`` is that of the network without the plan.

    Raises:
        FoveateError: it is not a network, the counting does not exist or has no rows to time, or the model cannot run
            on an image of this size.
    """
    if time and counting != "exact":
        raise FoveateError(f"time is measured module by module, and {counting} counting has totals only: count exactly")
    if counting not in COUNTINGS:
        raise FoveateError(f"counting={counting!r} does not exist; {near(str(counting), COUNTINGS)}")
    model = network_of(model)
    size = input_size_of(model, input_size)
    planned = plan_of(model) is not None
    with torch.inference_mode(mode=False):  # where autograd saves nothing
        if counting == "paper":
            whole = _on_a_copy(model, size, _counted)
            return _paper(model, size, whole, _on_a_copy(model, size, _counted, plain=True) if planned else None)
        found = _exact(model, size, time=time)
        if not planned:
            return replace(found, paper=_paper(model, size, _totals(found), None))
        baseline = _exact(model, size, plain=True, time=time)
        paper = _paper(model, size, _totals(found), _totals(baseline))
        return replace(found, baseline=replace(baseline, paper=paper.baseline), paper=paper)


def dropped(model: nn.Module, input_size: int | tuple[int, ...] | None = None) -> tuple[ModuleCost, ...]:
    """The blocks that a model's plan replaced.

    Args:
        model: left as found.
        input_size: a side, (height, width) or (channels, height, width) in pixels; without it the model's own.

    Returns:
        For each of them its name, class, parameters, MACs, element operations and bytes moved, in the network's order.
        Empty when the plan replaced none, or the model carries no plan.

    Raises:
        FoveateError: the model cannot run on an image of this size.
    """
    model = network_of(model)
    replaced = replaced_by(model)
    baseline = cost(model, input_size).baseline if replaced else None
    return tuple(row for row in baseline.modules if row.name in replaced) if baseline else ()


def _counted(net: nn.Module, size: Size) -> Counted:
    return Counted(parameters_of(net), {name: found.macs for name, found in count_operations(net, size).items()})


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
    placed = [at.path for at in record.placed if part(model, at.path) is not None] if record else []
    changed = [*replaced_by(model), *(() if plain else placed)]

    copies: list[nn.Module] = []

    def task(net: nn.Module, size: Size) -> tuple[Cost, bool]:
        counts = count_operations(net, size)
        whole = counts[""]
        copies.append(net)
        rows = module_costs(net, counts, changed, "removed" if plain else "added")
        try:
            saved = saved_bytes(net.train(), size)
        except Exception as error:  # noqa: BLE001 - without data or labels anything may fail; it is tried again
            logger.debug("%s does not train on this copy: %s", type(model).__name__, first_line(error))
            saved = None
        found = Cost(
            rows[0].params,
            whole.macs,
            whole.activations,
            macs_inference=whole.macs,
            element_ops=whole.element_ops,
            bytes_moved=rows[0].bytes_moved,
            activation_bytes_inference=whole.peak_bytes,
            activation_bytes_training=saved or 0,
            modules=rows,
            unsupported=tuple(sorted(whole.unsupported)),
        )
        return found, saved is not None

    found, trains = _on_a_copy(model, size, task, plain=plain)
    if _has_ours(copies[-1]):  # outside, for the guard of a copy is a hook, and what is hooked computes its definition
        with preserve_state(copies[-1], evaluation=True):
            found = replace(found, macs_inference=count_operations(copies[-1], size, fused=True)[""].macs)
    if time:
        found = replace(found, modules=_timed(model, size, found.modules, plain=plain))
    return found if trains else replace(found, activation_bytes_training=_saved(model, size, plain=plain))


def _timed(model: nn.Module, size: Size, rows: tuple[ModuleCost, ...], *, plain: bool) -> tuple[ModuleCost, ...]:
    """The rows with their fractions of time."""
    net = copied(model, data=True)
    fractions = time_fractions(undo(net) if plain else net, size)
    return tuple(replace(row, time_share=fractions[row.name]) for row in rows)


def _saved(model: nn.Module, size: Size, *, plain: bool) -> int:
    """What autograd saves, of a network that does not train without data: with data, or else in eval mode."""
    try:
        return _on_a_copy(model, size, lambda net, size: saved_bytes(net.train(), size), plain=plain)
    except FoveateError as error:
        name = type(model).__name__
        logger.warning("%s does not run in training mode; its training activations are eval mode's: %s", name, error)
        return _on_a_copy(model, size, saved_bytes, plain=plain)


def _has_ours(model: nn.Module) -> bool:
    """Whether a module of ours is in it: only those have other operations for inference."""
    return any(type(module).__module__.partition(".")[0] == "foveate" for module in model.modules())
