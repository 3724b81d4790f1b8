"""What ``insert`` did to a model: the record that the model carries, and travels with copies of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from foveate.model_info import unwrapped
from foveate.spec import Placement, Plan, Spec

__all__ = ["ATTRIBUTE", "Placed", "Record", "Removed", "part", "plans_within", "record_of", "unwrapped"]

ATTRIBUTE = "_foveate"


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
    plans = {name: _plan_of_record(module) for name, module in modules if record_of(module) is not None}
    return {name: plan for name, plan in plans.items() if plan is not None}
