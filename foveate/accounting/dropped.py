"""What a plan took out of a network: the blocks that it replaced, and what they cost."""

from __future__ import annotations

from torch import nn

from foveate.accounting.cost import cost
from foveate.accounting.counting.given import network_in
from foveate.accounting.rows import ModuleCost
from foveate.surgery.insert import replaced_by

__all__ = ["dropped"]


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
    model = network_in(model)
    gone = replaced_by(model)
    baseline = cost(model, input_size).baseline if gone else None
    return tuple(row for row in baseline.modules if row.name in gone) if baseline else ()
