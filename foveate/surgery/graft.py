"""The mechanics of surgery: how a mechanism is held and called inside a network, and how it comes out again.

``after`` leaves every module in its place: the mechanism becomes a child of the module that it follows, and a forward
hook calls it. So the network's own keys, attributes and weights stay. ``replacing`` takes a block out and puts a holder
with the mechanism in its place; the block is kept aside. Nothing is checked here: ``insert`` does that first.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.spec import Placement, Plan, Spec

__all__ = [
    "Gate",
    "Placed",
    "Record",
    "Removed",
    "Replacement",
    "Step",
    "graft",
    "host_of",
    "is_plain_sequence",
    "part",
    "record_of",
    "take_out",
]

KEY = "foveate"
ATTRIBUTE = "_foveate"
logger = logging.getLogger("foveate")


class Gate(nn.Module):
    """x + gate * (mechanism(x) - x), with a gate that starts at 0: exactly the identity until it is trained.

    Args:
        mechanism: (B, C, H, W) -> (B, C, H, W).

    Source: the zero-initialised residual weight of Bachlechner et al., ReZero is All You Need, 2020.
    """

    def __init__(self, mechanism: nn.Module) -> None:
        super().__init__()
        self.mechanism = mechanism
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The gated mechanism; equal to x, element by element, while the gate is 0."""
        return x + self.gate * (self.mechanism(x) - x)


class Replacement(nn.Module):
    """Stands where a block stood and calls the mechanism, its child ``foveate``."""

    def __init__(self, mechanism: nn.Module) -> None:
        super().__init__()
        self.add_module(KEY, mechanism)

    def forward(self, x: Tensor) -> Tensor:
        """mechanism(x)."""
        return self.foveate(x)  # type: ignore[operator]


@dataclass
class Step:
    """One mechanism that goes to one site."""

    site: str
    verb: str
    spec: Spec  # with start
    mechanism: nn.Module
    shape: tuple[int, ...]  # (1, C, H, W) of the feature map there
    keeper: str | None = None  # for ``after``: the module to keep it, or the nearest above that can; else the host


@dataclass(frozen=True)
class Placed:
    """Where one mechanism is: ``path`` is the dotted name of the mechanism, or of the gate around it."""

    site: str
    verb: str
    path: str


@dataclass
class Removed:
    """A block that a placement replaced: kept so that ``remove`` can put it back."""

    module: nn.Module
    original: bool = True  # False when its weights were never those of the caller's model, as after ``load``


@dataclass
class Record:
    """What ``insert`` did to a model; it travels with copies of the model and is not part of its state dict."""

    plan: Plan
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


def _attend_after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
    return module.foveate(output)  # type: ignore[operator]


def _attend_with(mechanism: nn.Module, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
    return mechanism(output)


def _put_after(model: nn.Module, step: Step) -> str:
    host = host_of(model, step.site)
    keeper = _keeper_of(model, host if step.keeper is None else step.keeper)
    module, owner = model.get_submodule(host), model.get_submodule(keeper)
    key = KEY if keeper == host else f"{host.removeprefix(keeper).strip('.').replace('.', '_')}_{KEY}"
    if hasattr(owner, key):
        raise FoveateError(f"attention cannot be kept at site {step.site!r}: the module there has a {key!r} of its own")
    owner.add_module(key, step.mechanism)
    # Plain functions of this module, so that a copy of the network calls the copy of the mechanism.
    module.register_forward_hook(_attend_after if keeper == host else functools.partial(_attend_with, step.mechanism))
    return f"{keeper}.{key}".lstrip(".")


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
    placed: list[Placed] = []
    removed: dict[str, Removed] = {}
    for step in sorted(steps, key=lambda s: s.verb != "replacing"):
        if step.verb == "replacing":
            parent, leaf = _split(step.site)
            owner = model.get_submodule(parent)
            removed[step.site] = Removed(getattr(owner, leaf))
            setattr(owner, leaf, Replacement(step.mechanism).train(step.mechanism.training))
            path = f"{step.site}.{KEY}"
        else:
            path = _put_after(model, step)
        placed.append(Placed(step.site, step.verb, path))
    record = Record(_plan_of_steps(steps), tuple(placed), removed, size)
    setattr(model, ATTRIBUTE, record)
    model.register_load_state_dict_pre_hook(_accept_weights_without_attention)
    return record


def _plan_of_steps(steps: Sequence[Step]) -> Plan:
    """The plan by module names; neighbours with the same spec and verb are one placement, so that the text is short."""
    joined: list[Placement] = []
    for step in steps:
        last = joined[-1] if joined else None
        if last is not None and (last.spec, last.verb) == (step.spec, step.verb):
            joined[-1] = Placement(last.spec, last.verb, (*last.sites, step.site))
        else:
            joined.append(Placement(step.spec, step.verb, (step.site,)))
    return Plan(tuple(joined))


def take_out(model: nn.Module) -> nn.Module:
    """Undo ``graft``, in place. A part of the network that was exchanged since stays as it now is.

    Returns:
        The model itself.
    """
    record = record_of(model)
    if record is None:
        return model
    for placed in record.placed:
        parent, leaf = _split(placed.path)
        owner = part(model, parent)
        if owner is None or not hasattr(owner, leaf):
            continue
        if placed.verb == "replacing" and isinstance(owner, Replacement):
            outer, name = _split(placed.site)
            block = _moved_like(record.removed[placed.site].module, owner)
            setattr(model.get_submodule(outer), name, block.train(owner.training))
        elif placed.verb == "after":
            delattr(owner, leaf)
    for module in model.modules():
        _drop(module._forward_hooks, (_attend_after, _attend_with))
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
