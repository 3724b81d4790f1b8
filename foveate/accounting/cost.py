"""Cost of a network and of its plan, counted exactly or as the compact-CNN papers count.

1 MAC is one multiply-add, which those papers print as one FLOP. ``activations`` are the elements that convolutions
and matrix products write for one image (Radosavovic et al., Designing Network Design Spaces, CVPR 2020).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from foveate.accounting.count import Tally, tally
from foveate.errors import FoveateError, near
from foveate.surgery import attentions, plan_of, remove
from foveate.surgery.insert import replaced_by
from foveate.surgery.probe import eval_mode, input_size_of, probe, record_of, skeleton

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
    """What one forward pass of one image costs. Costs can be added and subtracted.

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
        return Cost(
            self.params - other.params,
            self.macs - other.macs,
            self.activations - other.activations,
            self.counting,
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.macs + other.macs,
            self.activations + other.activations,
            self.counting,
        )

    def __str__(self) -> str:
        text = f"{self.params:,} parameters, {self.macs:,} MACs, {self.activations:,} activations"
        if self.baseline is None:
            return text
        plus = self - self.baseline
        return f"{text} (the plan: {plus.params:+,} parameters, {plus.macs:+,} MACs)"


def cost(
    model: nn.Module, input_size: int | tuple[int, ...] | None = None, *, counting: str = "exact"
) -> Cost:
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
    whole = _tally(model, size)
    exact = Cost(_parameters(model), whole[""].macs, whole[""].activations)
    if plan_of(model) is None:
        return exact if counting == "exact" else _printed(exact)
    plain = _without_plan(model)
    tallies = _tally(plain, size)
    baseline = Cost(_parameters(plain), tallies[""].macs, tallies[""].activations)
    if counting == "exact":
        return Cost(exact.params, exact.macs, exact.activations, baseline=baseline)
    printed = _printed(baseline)
    params, macs = printed.params, printed.macs
    for site, block in replaced_by(model).items():
        params -= sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
        macs -= tallies[site].macs
    for added, multiplied in _mechanisms(model, size, whole):
        params, macs = params + added, macs + multiplied
    return Cost(params, macs, 0, "paper", printed)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _tally(model: nn.Module, size: tuple[int, int, int]) -> dict[str, Tally]:
    try:
        return tally(skeleton(model), size)
    except Exception:  # noqa: BLE001 - without data anything may fail; the real run gives the real reason
        pass
    try:
        with torch.random.fork_rng(devices=[]), eval_mode(model):
            return tally(model, size)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FoveateError(f"cannot count {type(model).__name__} at {size}: {reason}") from error


def _without_plan(model: nn.Module) -> nn.Module:
    plain = copy.deepcopy(model)
    record = record_of(plain)
    for removed in record.removed.values() if record else ():
        removed.original = True  # shapes are enough here
    return remove(plain)


def _printed(exact: Cost) -> Cost:
    params, macs = PRINTED.get((exact.params, exact.macs), (exact.params, exact.macs))
    return Cost(params, macs, 0, "paper")


def _mechanisms(model: nn.Module, size: tuple[int, int, int], whole: dict[str, Tally]) -> Iterator[tuple[int, int]]:
    """(parameters, MACs) of each inserted mechanism: its paper's formula, or the real module's where it has none."""
    record = record_of(model)
    paths = {site: path for site, _, path in record.placed} if record else {}
    seen, _ = probe(model, size)
    for site, mechanism in attentions(model).items():
        formula = getattr(mechanism, "paper_cost", None)
        shape = seen[paths[site]].out_shape
        if formula is not None and shape is not None:
            yield formula(*shape[1:])
        else:
            yield _parameters(mechanism), whole[paths[site]].macs
