"""Cost of a network and of its plan, counted exactly or as the compact-CNN papers count.

1 MAC is one multiply-add, which those papers print as one FLOP. ``activations`` are the elements that convolutions
and matrix products write for one image (Radosavovic et al., Designing Network Design Spaces, CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from foveate.accounting.count import Tally, tally
from foveate.errors import FoveateError, first_line, near
from foveate.surgery import attentions, plan_of
from foveate.surgery.graft import record_of, take_out
from foveate.surgery.insert import replaced_by
from foveate.surgery.probe import input_size_of, on_a_copy, probe

__all__ = ["Cost", "cost"]

COUNTINGS = ("exact", "paper")

# (parameters, MACs) of the real network at 224 x 224 -> what the papers print for it.
PRINTED: dict[tuple[int, int], tuple[int, int]] = {
    (4_231_976, 568_740_352): (4_200_000, 569_000_000),  # MobileNetV1, Howard et al. 2017
    (2_585_560, 325_400_448): (2_600_000, 325_000_000),  # MobileNetV1 x0.75
    (1_331_592, 149_497_088): (1_300_000, 149_000_000),  # MobileNetV1 x0.5
    (3_504_872, 300_774_272): (3_400_000, 300_000_000),  # MobileNetV2, Sandler et al. 2018
}


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one image costs. Costs of one counting can be added and subtracted.

    Args:
        params: parameters.
        macs: multiply-adds.
        activations: elements written by convolutions and matrix products; 0 in ``paper`` counting, which has none.
        counting: ``exact`` or ``paper``.
        baseline: the same network without its plan; None when it carries none.
    """

    params: int
    macs: int
    activations: int
    counting: str = "exact"
    baseline: Cost | None = field(default=None, compare=False)

    def __sub__(self, other: Cost) -> Cost:
        return self._plus(other, -1)

    def __add__(self, other: Cost) -> Cost:
        return self._plus(other, 1)

    def _plus(self, other: Cost, sign: int) -> Cost:
        if self.counting != other.counting:
            raise FoveateError(f"cannot take {self.counting!r} and {other.counting!r} together: count both in one way")
        return Cost(
            self.params + sign * other.params,
            self.macs + sign * other.macs,
            self.activations + sign * other.activations,
            self.counting,
        )

    def __str__(self) -> str:
        text = f"{self.params:,} parameters, {self.macs:,} MACs"
        text += f", {self.activations:,} activations" if self.counting == "exact" else ", counted as the papers do"
        if self.baseline is None:
            return text
        plus = self - self.baseline
        return f"{text} (the plan: {plus.params:+,} parameters, {plus.macs:+,} MACs)"


def cost(model: nn.Module, input_size: int | tuple[int, ...] | None = None, *, counting: str = "exact") -> Cost:
    """Count what a model costs, beside the same model without its plan.

    Args:
        model: left as found.
        input_size: a side, (height, width) or (channels, height, width) in pixels; without it the model's own.
        counting: ``exact`` counts every parameter and every multiply-add of the real modules. ``paper`` counts as the
            ULSAM paper does: the baseline as its authors print it, where it is known; a replaced block counts its
            convolution weights only; a mechanism counts the paper's formula.

    Returns:
        The cost; its ``baseline`` is that of the network without the plan.

    Raises:
        FoveateError: the counting does not exist, or the model cannot run on an image of this size.
    """
    if counting not in COUNTINGS:
        raise FoveateError(f"counting={counting!r} does not exist; {near(counting, COUNTINGS)}")
    size = input_size_of(model, input_size)
    exact, whole = _measure(model, size)
    if plan_of(model) is None:
        return exact if counting == "exact" else _printed(exact)
    baseline, parts = _measure(model, size, plain=True)
    if counting == "exact":
        return Cost(exact.params, exact.macs, exact.activations, baseline=baseline)
    printed = _printed(baseline)
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


def _measure(model: nn.Module, size: tuple[int, int, int], *, plain: bool = False) -> tuple[Cost, dict[str, Tally]]:
    """The cost of a network, with or without its plan, and what runs in each of its modules."""

    def task(net: nn.Module) -> tuple[Cost, dict[str, Tally]]:
        net = take_out(net) if plain else net
        tallies = tally(net, size)
        return Cost(_parameters(net), tallies[""].macs, tallies[""].activations), tallies

    try:
        return on_a_copy(model, task)[0]
    except Exception as error:
        channels, height, width = size
        raise FoveateError(
            f"cannot count {type(model).__name__} on an image of {channels} x {height} x {width} "
            f"(channels x height x width): {first_line(error)}"
        ) from error


def _printed(exact: Cost) -> Cost:
    params, macs = PRINTED.get((exact.params, exact.macs), (exact.params, exact.macs))
    return Cost(params, macs, 0, "paper")


def _mechanisms(model: nn.Module, size: tuple[int, int, int], whole: dict[str, Tally]) -> Iterator[tuple[int, int]]:
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
