"""What ``insert`` did to a model: the record that the model carries, and travels with copies of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from foveate.model_info import unwrapped
from foveate.spec import Placement, Plan, Spec

__all__ = ["ATTRIBUTE", "Placed", "Record", "Removed", "kinds_at", "part", "plans_within", "record_of"]
__all__ += ["shown_names", "unwrapped"]

ATTRIBUTE = "_foveate"
Kinds: TypeAlias = frozenset[tuple[torch.device, torch.dtype]]


@dataclass(frozen=True)
class Placed:
    """Where one mechanism is: ``path`` is the dotted name of the mechanism, or of the gate around it."""

    site: str
    verb: str
    path: str
    spec: Spec
    maps: tuple[str, ...] = ()
    per_class: str | None = None


@dataclass
class Removed:
    """A block that a placement replaced: kept so that ``remove`` can put it back."""

    module: nn.Module
    original: bool = True  # False when its weights were never those of the caller's model, as after ``load``
    beside: Kinds = frozenset()  # ``kinds_at`` its place, when it had been replaced

    def moved(self, now: Kinds) -> nn.Module:
        """The block, moved to the device and the dtype to which the model was moved while the block was out.

        Args:
            now: ``kinds_at`` its place.
        """
        if len(now) != 1 or len(self.beside) != 1 or now == self.beside:
            return self.module
        ((device, dtype),), ((device_then, dtype_then),) = now, self.beside
        return self.module.to(device if device != device_then else None, dtype if dtype != dtype_then else None)


@dataclass
class Record:
    """What ``insert`` did to a model; it travels with copies of the model and is not part of its state dict."""

    placed: tuple[Placed, ...]
    removed: dict[str, Removed]
    size: tuple[int, int, int]  # of the image that the plan was tried on


def record_of(model: nn.Module) -> Record | None:
    """The model's record, or None when it carries no plan."""
    record: Record | None = getattr(model, ATTRIBUTE, None)
    return record


def part(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted name, or None."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def shown_names(record: Record | None, others: Iterable[str] = ()) -> dict[str, str]:
    """What each inserted mechanism is called in results, by its path: its site, and ``pool`` or ``head`` at the end.

    Where two would be called the same, the verb tells them apart: ``as pool`` beside attention at a module ``pool``,
    ``after att`` beside a module ``att`` that is attention itself.

    Args:
        record: of the model.
        others: names that modules of the network itself have in the same result.
    """
    special = {"as pool": "pool", "as head": "head"}
    placed = record.placed if record else ()
    taken = Counter([*others, *(at.site for at in placed if at.verb not in special)])
    return {
        at.path: (at.verb if taken[special[at.verb]] else special[at.verb])
        if at.verb in special
        else (at.site if taken[at.site] == 1 else f"{at.verb} {at.site}")
        for at in placed
    }


def kinds_at(model: nn.Module, site: str) -> Kinds:
    """Device and dtype of the floating point parameters at a site; where there are none, of all of the model."""
    for module in (model.get_submodule(site), model):
        kinds = frozenset((p.device, p.dtype) for p in module.parameters() if p.is_floating_point())
        if kinds:
            break
    return kinds


def _plan_of_record(model: nn.Module) -> Plan | None:
    """The plan that a model carries, by module names, without what was removed since, as a head with its classifier.

    Neighbours with the same spec and verb are one placement, so that the text is short.
    """
    record = record_of(model)
    joined: list[Placement] = []
    for at in record.placed if record else ():
        last = joined[-1] if joined else None
        if part(model, at.path) is None:
            continue
        if at.verb.startswith("as "):
            joined.append(Placement(at.spec, at.verb, at.maps))
        elif last is not None and (last.spec, last.verb) == (at.spec, at.verb):
            joined[-1] = Placement(last.spec, last.verb, (*last.sites, at.site))
        else:
            joined.append(Placement(at.spec, at.verb, (at.site,)))
    return Plan(tuple(joined)) if joined else None


def plans_within(model: nn.Module) -> dict[str, Plan]:
    """The plans that a model and its parts carry, by the part's dotted name; the model's own is that of ``""``."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    # Its own: what torch.compile puts around a module passes on the attributes of that module.
    plans = {name: _plan_of_record(module) for name, module in modules if ATTRIBUTE in vars(module)}
    return {name: plan for name, plan in plans.items() if plan is not None}
