"""The cost of a network module by module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from foveate.accounting.counting.dispatch_counter import OperationCount
from foveate.surgery.wrappers import HeadWrapper, Replacement, mechanism_of

__all__ = ["ModuleCost", "module_costs", "with_removed"]


@dataclass(frozen=True)
class ModuleCost:
    """What one module costs, its parts included, for one image. The parts' costs add up to at most this.

    Args:
        name: dotted; "" is the whole network.
        kind: the class; of what a plan put in, the mechanism's.
        params: parameters; one that several modules share counts in each of them.
        macs: multiply-adds.
        element_ops: element operations.
        bytes_moved: bytes that operations read and write.
        share: fraction of the whole network's MACs, 0 to 1.
        change: ``added`` by the plan, ``removed`` by it (in the network without the plan), or empty.
        time_share: fraction of the whole network's time, 0 to 1; None where it was not measured.
    """

    name: str
    kind: str
    params: int
    macs: int
    element_ops: int
    bytes_moved: int
    share: float
    change: str = ""
    time_share: float | None = None


def module_costs(
    model: nn.Module, counts: dict[str, OperationCount], changed: Sequence[str] = (), change: str = ""
) -> tuple[ModuleCost, ...]:
    """A row for each module, what contains it first.

    Args:
        model: the network.
        counts: what runs in each module.
        changed: names of modules that, with their parts, are marked.
        change: the mark.
    """
    rows = []
    for name, module in model.named_modules():
        found, macs = counts[name], counts[""].macs
        marked = any(name == start or name.startswith(f"{start}.") for start in changed)
        rows.append(
            ModuleCost(
                name=name,
                kind=type(_working(module)).__name__,
                params=sum(parameter.numel() for parameter in module.parameters()),
                macs=found.macs,
                element_ops=found.element_ops,
                bytes_moved=found.bytes_read + found.bytes_written,
                share=found.macs / macs if macs else 0.0,
                change=change if marked else "",
            )
        )
    return tuple(rows)


def with_removed(rows: Sequence[ModuleCost], plain: Sequence[ModuleCost]) -> tuple[ModuleCost, ...]:
    """The rows with a plan, and before what stands in a block's place those of the block.

    Args:
        rows: of the network with the plan.
        plain: of the network without it.
    """
    removed = [row for row in plain if row.change]
    merged: list[ModuleCost] = []
    for row in rows:
        if row.change == "added":
            merged += [old for old in removed if f"{old.name}.".startswith(f"{row.name}.")]
        merged.append(row)
    return tuple(merged)


def _working(module: nn.Module) -> nn.Module:
    """The attention module in a wrapper or a gate."""
    inside = module.foveate if isinstance(module, Replacement | HeadWrapper) else module
    return mechanism_of(inside)  # type: ignore[arg-type]  # a child is a module
