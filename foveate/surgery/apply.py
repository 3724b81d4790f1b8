"""How a mechanism is put into a network and called there, and how it is taken out again.

``after`` leaves every module in its place: the mechanism becomes a child of the module that it follows, and a forward
hook calls it. So the network's own keys, attributes and weights stay. ``replacing`` puts a wrapper with the mechanism
in a block's place, and the record keeps the block. ``as pool`` follows the last feature map and gives a map of 1x1,
which the network's own average pooling then leaves as it is. ``as head`` replaces the classifier, and hooks record the
feature maps that the head reads, for one forward pass. Nothing is checked here: ``insert`` does that first.
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from foveate.errors import FoveateError
from foveate.spec import Spec
from foveate.surgery.forward_pass import begin_pass, close_pass, find_maps, open_pass, record_map, tie_maps
from foveate.surgery.hosting import guard, release
from foveate.surgery.record import ATTRIBUTE, Placed, Record, Removed, kinds_at, part, record_of
from foveate.surgery.wrappers import (
    HOOKS,
    KEY,
    HeadWrapper,
    PerClass,
    Replacement,
    attend_after,
    attend_with,
    carry_attributes,
    pool_with,
)

__all__ = ["Ends", "Step", "apply_steps", "hook_target", "is_plain_sequence", "undo"]

logger = logging.getLogger("foveate")


@dataclass(frozen=True)
class Ends:
    """Where a pass through a network begins, and where it is cut into ``forward_features`` and ``forward_head``."""

    first: str  # the layer that runs first
    gives: str = ""  # the module that makes what forward_features returns; empty: the network is not cut so
    takes: str = ""  # the module that forward_head gives it to


@dataclass
class Step:
    """One mechanism that goes to one site."""

    site: str  # for ``as pool`` the last feature map, for ``as head`` the classifier
    verb: str
    spec: Spec  # with start
    mechanism: nn.Module
    shape: tuple[int, ...]  # (1, C, H, W) of the feature map there; of a head, (1, D) of the pooled features
    gives: tuple[int, ...]  # the shape that the mechanism gives
    host: str | None = None  # for ``after``: the module to keep it, or the nearest above that can; else the target
    maps: tuple[str, ...] = ()  # for ``as head``: the sites whose feature maps it reads
    per_class: str | None = None  # for ``as pool`` with features for each class: the classifier
    nhwc: bool = False  # the network's feature map is (B, H, W, C)
    nhwc_maps: frozenset[str] = frozenset()  # those of ``maps`` that are
    trailing: int = 0  # for ``as head``: axes of size 1 behind the pooled features
    ends: Ends | None = None  # for ``as head``


def is_plain_sequence(module: nn.Module) -> bool:
    """Whether the module is a Sequential whose output is its last child's."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def hook_target(model: nn.Module, site: str) -> str:
    """Where a hook goes for a site: the last part of a plain Sequential, whose output is the Sequential's own."""
    module = model.get_submodule(site)
    while is_plain_sequence(module) and len(module):  # type: ignore[arg-type]  # a Sequential has a length
        leaf, module = list(module.named_children())[-1]
        site = f"{site}.{leaf}"
    return site


def _split(name: str) -> tuple[str, str]:
    parent, _, leaf = name.rpartition(".")
    return parent, leaf


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _host_of(model: nn.Module, name: str, target: str) -> str:
    """The nearest module from here upwards that is not a container, to keep a mechanism: containers run their children.

    Where every module above is a container, the last layer inside the target keeps it.
    """
    while isinstance(model.get_submodule(name), _CONTAINERS):
        if not name:
            layers: list[str] = [
                inner
                for inner, module in model.get_submodule(target).named_modules(prefix=target)
                if not isinstance(module, _CONTAINERS) and next(module.children(), None) is None
            ]
            if not layers:
                raise FoveateError(f"attention cannot be kept at site {target!r}: no layer there could hold it")
            return layers[-1]
        name = _split(name)[0]
    return name


def _put_after(model: nn.Module, step: Step) -> str:
    target = hook_target(model, step.site)
    host = _host_of(model, target if step.host is None else step.host, target)
    module, owner = model.get_submodule(target), model.get_submodule(host)
    key = KEY if step.verb == "after" else f"{KEY}_pool"
    inside = target.removeprefix(host).strip(".") if target.startswith(host) else target
    key = key if host == target else f"{inside.replace('.', '_')}_{key}"
    if hasattr(owner, key):
        raise FoveateError(f"attention cannot be kept at site {step.site!r}: the module there has a {key!r} of its own")
    owner.add_module(key, step.mechanism)
    # Plain functions, so that a copy of the network calls the copy of the mechanism.
    if step.verb == "as pool":
        module.register_forward_hook(functools.partial(pool_with, step.mechanism, key, step.nhwc))
    elif host == target and not step.nhwc:
        module.register_forward_hook(attend_after)
    else:
        module.register_forward_hook(functools.partial(attend_with, step.mechanism, key, step.nhwc))
    return f"{host}.{key}".lstrip(".")


def _exchange(model: nn.Module, site: str, module: nn.Module) -> nn.Module:
    """Put a module in another's place; returns the other."""
    parent, leaf = _split(site)
    owner = model.get_submodule(parent)
    before: nn.Module = getattr(owner, leaf)
    if isinstance(module, Replacement | HeadWrapper):
        carry_attributes(module, before)
    setattr(owner, leaf, module)
    return before


def _put_head(model: nn.Module, step: Step) -> nn.Module:
    """Put a head in the classifier's place; returns the classifier."""
    key, ends = uuid.uuid4().hex, step.ends
    nhwc = tuple(site in step.nhwc_maps for site in step.maps)
    wrapper = HeadWrapper(
        step.mechanism, key, nhwc, step.gives[1], trailing=step.trailing, split=ends is not None and bool(ends.gives)
    )
    for index, site in enumerate(step.maps):
        target = model.get_submodule(hook_target(model, site))
        target.register_forward_hook(functools.partial(record_map, key, index))
    if ends is not None:
        model.get_submodule(ends.first).register_forward_pre_hook(functools.partial(begin_pass, key, bool(ends.gives)))
        if ends.gives:
            model.get_submodule(ends.takes).register_forward_pre_hook(functools.partial(find_maps, key))
    model.register_forward_pre_hook(functools.partial(open_pass, key), prepend=True)
    model.register_forward_hook(functools.partial(close_pass, key), always_call=True)
    return _exchange(model, step.site, wrapper.train(step.mechanism.training))


def _tie_maps_to_features(model: nn.Module, steps: Sequence[Step]) -> None:
    """The last hooks of all: what a module gives to ``forward_head`` is what attention and pool have made of it."""
    for step in steps:
        if step.ends is not None and step.ends.gives:
            wrapper: Any = model.get_submodule(step.site)
            giver = model.get_submodule(step.ends.gives)
            giver.register_forward_hook(functools.partial(tie_maps, wrapper.key))


def apply_steps(model: nn.Module, steps: Sequence[Step], size: tuple[int, int, int]) -> Record:
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
                PerClass.take_over(classifier)
            continue
        if step.verb == "as head":
            removed[step.site] = Removed(_put_head(model, step))
        else:
            wrapper = Replacement(step.mechanism, nhwc=step.nhwc).train(step.mechanism.training)
            removed[step.site] = Removed(_exchange(model, step.site, wrapper))
        paths[id(step)] = f"{step.site}.{KEY}"
    _tie_maps_to_features(model, steps)
    for site, gone in removed.items():
        gone.beside = kinds_at(model, site)
    placed = tuple(Placed(s.site, s.verb, paths[id(s)], s.spec, s.maps, s.per_class) for s in steps)
    record = Record(placed, removed, size)
    setattr(model, ATTRIBUTE, record)
    register_hook: Callable[[Callable[..., None]], object] = model.register_load_state_dict_pre_hook
    register_hook(_accept_weights_without_attention)
    guard(model)
    return record


def undo(model: nn.Module) -> nn.Module:
    """Take the mechanisms out again, in place. A part of the network that was exchanged since stays as it now is.

    Returns:
        The model itself.
    """
    record = record_of(model)
    if record is None:
        return model
    kinds = {site: kinds_at(model, site) for site in record.removed if part(model, site) is not None}
    for placed in record.placed:
        classifier = part(model, placed.per_class) if placed.per_class else None
        if placed.per_class and isinstance(classifier, PerClass):
            classifier.give_back()
        parent, leaf = _split(placed.path)
        owner = part(model, parent)
        if owner is None or not hasattr(owner, leaf):
            continue
        if isinstance(owner, Replacement | HeadWrapper):
            block = record.removed[placed.site].moved(kinds[placed.site])
            if block.training is not owner.training:  # else parts of it may have a mode of their own, as frozen norms
                block.train(owner.training)
            _exchange(model, placed.site, block)
        elif placed.verb in ("after", "as pool"):
            delattr(owner, leaf)
    for module in model.modules():
        _drop(module._forward_hooks, HOOKS)
        _drop(module._forward_pre_hooks, HOOKS)
        for hook in [hook for hook in module._forward_hooks_always_called if hook not in module._forward_hooks]:
            del module._forward_hooks_always_called[hook]
    release(model)
    _drop(model._load_state_dict_pre_hooks, (_accept_weights_without_attention,))
    delattr(model, ATTRIBUTE)
    return model


def _drop(hooks: dict[int, Callable[..., object]], ours: tuple[object, ...]) -> None:
    for key, hook in list(hooks.items()):
        if getattr(hook, "func", getattr(hook, "hook", hook)) in ours:
            del hooks[key]


def _accept_weights_without_attention(
    module: nn.Module,
    state: dict[str, object],
    prefix: str,
    metadata: dict[str, object],
    _strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Let a checkpoint of the network without any attention load; what it lacks of replaced blocks is reported, too."""
    record = record_of(module)
    if record is None or any(key.startswith(f"{prefix}{at.path}.") for at in record.placed for key in state):
        return
    for site, removed in record.removed.items():
        start = f"{prefix}{site}."
        weights = {key.removeprefix(start): state.pop(key) for key in list(state) if key.startswith(start)}
        own = part(module, f"{site}.{KEY}")
        if not weights and own is not None and not own.state_dict():
            continue  # the model's own weights look so, too
        try:
            report = removed.module.load_state_dict(
                weights, strict=False, assign=bool(metadata.get("assign_to_params_buffers", False))
            )
        except RuntimeError as error:  # tensors of another shape
            errors.append(f"in {site!r}, which the plan replaced: {error}")
            continue
        missing.extend(start + key for key in report.missing_keys)
        unexpected.extend(start + key for key in report.unexpected_keys)
    for at in record.placed:
        own = part(module, at.path)
        kept = own.state_dict() if own is not None else {}
        state.update({f"{prefix}{at.path}.{key}": tensor for key, tensor in kept.items()})
    logger.info("the weights hold no attention: the %d inserted mechanisms keep theirs", len(record.placed))
