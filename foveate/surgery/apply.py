"""The mechanics of surgery: how a mechanism is held and called inside a network, and how it comes out again.

``after`` leaves every module in its place: the mechanism becomes a child of the module that it follows, and a forward
hook calls it. So the network's own keys, attributes and weights stay. ``replacing`` takes a block out and puts a holder
with the mechanism in its place; the block is kept aside. ``as pool`` follows the last feature map and gives a map of
1x1, which the network's own average pooling then leaves as it is. ``as head`` replaces the classifier, and hooks keep
the feature maps that the head reads. Nothing is checked here: ``insert`` does that first.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from foveate.errors import FoveateError
from foveate.spec import Placement, Plan, Spec
from foveate.surgery.hooks import HOOKS, attend_after, attend_with, keep_map, pool_with
from foveate.surgery.wrappers import KEY, HeadPlace, PerClass, Replacement

__all__ = [
    "Placed",
    "Record",
    "Removed",
    "Step",
    "carried_plan",
    "graft",
    "host_of",
    "is_plain_sequence",
    "part",
    "record_of",
    "take_out",
]

ATTRIBUTE = "_foveate"
logger = logging.getLogger("foveate")


@dataclass
class Step:
    """One mechanism that goes to one site."""

    site: str  # for ``as pool`` the last feature map, for ``as head`` the classifier
    verb: str
    spec: Spec  # with start
    mechanism: nn.Module
    shape: tuple[int, ...]  # (1, C, H, W) of the feature map there; of a head, (1, D) of the pooled features
    gives: tuple[int, ...]  # the shape that the mechanism gives
    keeper: str | None = None  # for ``after``: the module to keep it, or the nearest above that can; else the host
    maps: tuple[str, ...] = ()  # for ``as head``: the sites whose feature maps it reads
    per_class: str | None = None  # for ``as pool`` with features for each class: the classifier
    nhwc: bool = False  # the network's feature map is (B, H, W, C)
    nhwc_maps: frozenset[str] = frozenset()  # those of ``maps`` that are


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


def is_plain_sequence(module: nn.Module) -> bool:
    """Whether the module is a Sequential whose output is its last child's."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def host_of(model: nn.Module, site: str) -> str:
    """Where a hook goes for a site: the last part of a plain Sequential, whose output is the Sequential's own."""
    module = model.get_submodule(site)
    while is_plain_sequence(module) and len(module):  # type: ignore[arg-type]
        leaf, module = list(module.named_children())[-1]
        site = f"{site}.{leaf}"
    return site


def _split(name: str) -> tuple[str, str]:
    parent, _, leaf = name.rpartition(".")
    return parent, leaf


def _keeper_of(model: nn.Module, name: str) -> str:
    """The nearest module from here upwards that is no container, to keep a mechanism: containers run their children."""
    host = name
    while isinstance(model.get_submodule(name), nn.Sequential | nn.ModuleList | nn.ModuleDict):
        if not name:
            raise FoveateError(f"attention cannot be kept near site {host!r}: every module above it is a container")
        name = _split(name)[0]
    return name


def _put_after(model: nn.Module, step: Step) -> str:
    host = host_of(model, step.site)
    keeper = _keeper_of(model, host if step.keeper is None else step.keeper)
    module, owner = model.get_submodule(host), model.get_submodule(keeper)
    key = KEY if step.verb == "after" else f"{KEY}_pool"
    key = key if keeper == host else f"{host.removeprefix(keeper).strip('.').replace('.', '_')}_{key}"
    if hasattr(owner, key):
        raise FoveateError(f"attention cannot be kept at site {step.site!r}: the module there has a {key!r} of its own")
    owner.add_module(key, step.mechanism)
    # Plain functions of this module, so that a copy of the network calls the copy of the mechanism.
    if step.verb == "as pool":
        module.register_forward_hook(functools.partial(pool_with, step.mechanism, step.nhwc))
    elif keeper == host and not step.nhwc:
        module.register_forward_hook(attend_after)
    else:
        module.register_forward_hook(functools.partial(attend_with, step.mechanism, step.nhwc))
    return f"{keeper}.{key}".lstrip(".")


def _exchange(model: nn.Module, site: str, module: nn.Module) -> nn.Module:
    """Put a module in another's place; returns the other."""
    parent, leaf = _split(site)
    owner = model.get_submodule(parent)
    before: nn.Module = getattr(owner, leaf)
    setattr(owner, leaf, module)
    return before


def _put_head(model: nn.Module, step: Step) -> nn.Module:
    """Put a head in the classifier's place; returns the classifier."""
    place = HeadPlace(step.mechanism, len(step.maps), step.gives[1]).train(step.mechanism.training)
    for index, site in enumerate(step.maps):
        host = model.get_submodule(host_of(model, site))
        host.register_forward_hook(functools.partial(keep_map, place.kept, index, site in step.nhwc_maps))
    return _exchange(model, step.site, place)


def graft(model: nn.Module, steps: Sequence[Step], size: tuple[int, int, int]) -> Record:
    """Put mechanisms into a model, in place.

    Args:
        model: one without a plan.
        steps: the mechanisms, and where they go.
        size: (channels, height, width) of the image that the plan is tried on; it is written down.

    Returns:
        What was done, which the model keeps, too.

    Raises:
        FoveateError: a place cannot keep a mechanism. The model may be changed by then: rehearse on a copy.
    """
    paths: dict[int, str] = {}
    removed: dict[str, Removed] = {}
    # A head's hooks come last: it reads what the attention at its sites gives.
    order = {"replacing": 0, "after": 1, "as head": 2, "as pool": 3}
    for step in sorted(steps, key=lambda s: order[s.verb]):
        if step.verb in ("after", "as pool"):
            paths[id(step)] = _put_after(model, step)
            if step.per_class is not None:
                classifier: Any = model.get_submodule(step.per_class)
                _exchange(model, step.per_class, PerClass.of(classifier))
            continue
        if step.verb == "as head":
            removed[step.site] = Removed(_put_head(model, step))
        else:
            holder = Replacement(step.mechanism, nhwc=step.nhwc).train(step.mechanism.training)
            removed[step.site] = Removed(_exchange(model, step.site, holder))
        paths[id(step)] = f"{step.site}.{KEY}"
    placed = tuple(Placed(s.site, s.verb, paths[id(s)], s.spec, s.maps, s.per_class) for s in steps)
    record = Record(placed, removed, size)
    setattr(model, ATTRIBUTE, record)
    model.register_load_state_dict_pre_hook(_accept_weights_without_attention)
    return record


def carried_plan(model: nn.Module) -> Plan | None:
    """The plan that a model carries, by module names, without what has gone since, as a head with its classifier.

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


def take_out(model: nn.Module) -> nn.Module:
    """Undo ``graft``, in place. A part of the network that was exchanged since stays as it now is.

    Returns:
        The model itself.
    """
    record = record_of(model)
    if record is None:
        return model
    for placed in record.placed:
        classifier = part(model, placed.per_class) if placed.per_class else None
        if placed.per_class and isinstance(classifier, PerClass):
            _exchange(model, placed.per_class, classifier.plain())
        parent, leaf = _split(placed.path)
        owner = part(model, parent)
        if owner is None or not hasattr(owner, leaf):
            continue
        if isinstance(owner, Replacement | HeadPlace):
            block = _moved_like(record.removed[placed.site].module, owner)
            _exchange(model, placed.site, block.train(owner.training))
        elif placed.verb in ("after", "as pool"):
            delattr(owner, leaf)
    for module in model.modules():
        _drop(module._forward_hooks, HOOKS)
    _drop(model._load_state_dict_pre_hooks, (_accept_weights_without_attention,))
    delattr(model, ATTRIBUTE)
    return model


def _moved_like(block: nn.Module, model: nn.Module) -> nn.Module:
    """The block where the mechanism now is, and in its dtype, for a model that was moved while the block was out."""
    now, then = ({(p.device, p.dtype) for p in m.parameters() if p.is_floating_point()} for m in (model, block))
    return block.to(*now.pop()) if len(now) == 1 and not now <= then else block


def _drop(hooks: dict[int, Any], ours: tuple[Any, ...]) -> None:
    for key, hook in list(hooks.items()):
        if getattr(hook, "func", getattr(hook, "hook", hook)) in ours:
            del hooks[key]


def _accept_weights_without_attention(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Let a checkpoint of the network without any attention load, strictly for all that it should hold."""
    record = record_of(module)
    if record is None or any(key.startswith(f"{prefix}{at.path}.") for at in record.placed for key in state):
        return
    for site, removed in record.removed.items():
        start = f"{prefix}{site}."
        weights = {key.removeprefix(start): state.pop(key) for key in list(state) if key.startswith(start)}
        if weights:
            removed.module.load_state_dict(weights)
    for at in record.placed:
        own = part(module, at.path)
        kept = own.state_dict() if own is not None else {}
        state.update({f"{prefix}{at.path}.{key}": tensor for key, tensor in kept.items()})
    logger.info("the weights hold no attention: the %d inserted mechanisms keep theirs", len(record.placed))
