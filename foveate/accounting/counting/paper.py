"""Parameters and MACs as the tables of the compact-CNN papers count them, made from exact ones.

The network without a plan is what its authors print, where they do. A replaced block counts its convolution weights
only, a mechanism its paper's formula; what has no formula is counted exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from foveate.surgery.insert import replaced_by
from foveate.surgery.record import part, record_of
from foveate.surgery.trace import probe
from foveate.surgery.wrappers import mechanism_of

__all__ = ["PRINTED", "Counted", "as_printed", "parameters_of", "with_the_plan"]

# (parameters, MACs) of the real network at 224 x 224 -> what the papers print for it.
PRINTED: dict[tuple[int, int], tuple[int, int]] = {
    (4_231_976, 568_740_352): (4_200_000, 569_000_000),  # MobileNetV1, Howard et al. 2017
    (2_585_560, 325_400_448): (2_600_000, 325_000_000),  # MobileNetV1 x0.75
    (1_331_592, 149_497_088): (1_300_000, 149_000_000),  # MobileNetV1 x0.5
    (3_504_872, 300_774_272): (3_400_000, 300_000_000),  # MobileNetV2, Sandler et al. 2018
}


@dataclass(frozen=True)
class Counted:
    """Exact parameters of a network, and the exact MACs of each module by dotted name; "" is the whole."""

    params: int
    macs: Mapping[str, int]


def parameters_of(model: nn.Module) -> int:
    """Each parameter once."""
    return sum(parameter.numel() for parameter in model.parameters())


def as_printed(plain: Counted) -> tuple[int, int]:
    """(parameters, MACs) of a network without a plan: as printed, or exact ones where nothing is."""
    exact = plain.params, plain.macs[""]
    return PRINTED.get(exact, exact)


def with_the_plan(model: nn.Module, size: tuple[int, int, int], whole: Counted, plain: Counted) -> tuple[int, int]:
    """(parameters, MACs) of a network that carries a plan.

    Args:
        model: the network.
        size: (channels, height, width) of the image.
        whole: what it counts exactly.
        plain: what it counts exactly without the plan.
    """
    params, macs = as_printed(plain)
    for site, block in replaced_by(model).items():
        convolutions = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
        params -= convolutions or parameters_of(block)  # a classifier has none
        macs -= plain.macs[site]
    for added, multiplied in _mechanisms(model, size, whole):
        params, macs = params + added, macs + multiplied
    return params, macs


def _mechanisms(model: nn.Module, size: tuple[int, int, int], whole: Counted) -> Iterator[tuple[int, int]]:
    """(parameters, MACs) of each inserted mechanism."""
    record = record_of(model)
    placed = [(at, part(model, at.path)) for at in record.placed] if record else []
    inserted = [(at, mechanism_of(module)) for at, module in placed if module is not None]
    formulas = any(hasattr(mechanism, "paper_cost") for _, mechanism in inserted)
    seen = probe(model, size)[0] if formulas else {}
    for at, mechanism in inserted:
        formula = getattr(mechanism, "paper_cost", None)
        shape = seen[at.path].out_shape if formula is not None else None
        if formula is not None and shape is not None:
            yield formula(*shape[1:])
        else:
            yield parameters_of(mechanism), whole.macs[at.path]
