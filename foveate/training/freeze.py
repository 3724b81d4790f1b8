"""What is frozen, found by running the network once; and the network cut in two at that place.

The trunk is what runs up to the cut, the tail is the rest. The tail alone is the whole network with the trunk's modules
swapped for Identity: right for a chain (each module gets the one before it), and ``is_chain`` checks that it is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from foveate.errors import FoveateError, near
from foveate.preserve import preserve_state
from foveate.surgery.apply import hook_target
from foveate.surgery.classifier import classifier_of
from foveate.surgery.insert import attentions
from foveate.surgery.record import record_of

__all__ = ["Frozen", "find_frozen", "freeze_parameters", "is_chain", "tail", "trunk_features"]


@dataclass(frozen=True)
class Frozen:
    """The frozen part of a network.

    Args:
        modules: dotted names of the outermost modules that complete up to the cut, in the order in which they do.
        parameters: dotted names of the frozen parameters.
    """

    modules: tuple[str, ...] = ()
    parameters: frozenset[str] = frozenset()

    @property
    def cut(self) -> str:
        """The module whose output is the trunk's features."""
        return self.modules[-1]


class _Stop(Exception):
    def __init__(self, features: object) -> None:
        super().__init__()
        self.features = features


def _trace(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """("start" | "end", name) for every module's run, in order."""
    events: list[tuple[str, str]] = []
    with preserve_state(model, evaluation=True, no_grad=True) as hooks:
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: events.append(("start", name))))
            hooks.append(module.register_forward_hook(lambda *_, name=name: events.append(("end", name))))
        model(images)
    return events


def find_frozen(model: nn.Module, freeze: str, images: Tensor, *, head: tuple[str, ...] = ()) -> Frozen:
    """What a recipe's ``freeze`` means in a network.

    Args:
        model: left as found.
        freeze: "", "trunk" or a module's dotted name, as in ``Recipe``.
        images: (B, 3, H, W), to run the network once in eval mode.
        head: dotted names of what "trunk" does not freeze; without them the classifier.

    Raises:
        FoveateError: no such module, it does not run exactly once, nothing would be left to train, or an attention
            mechanism with parameters would be frozen at its random start.
    """
    if not freeze:
        return Frozen()
    channels, height, width = images.shape[1:]
    heads = (head or classifier_of(model, (channels, height, width))) if freeze == "trunk" else ()
    modules = dict(model.named_modules())
    if not heads and freeze not in modules:
        raise FoveateError(f"freeze={freeze!r}: no such module; {near(freeze, ['trunk', *filter(None, modules)])}")
    events = _trace(model, images)
    if heads:
        boundary = min((events.index(("start", head)) for head in heads if ("start", head) in events), default=0)
    else:
        if events.count(("end", freeze)) != 1:
            raise FoveateError(
                f"freeze={freeze!r}: the module runs {events.count(('end', freeze))} times in a forward pass; "
                "name one that runs once"
            )
        boundary = events.index(("end", freeze)) + 1
    completed = list(dict.fromkeys(name for event, name in events[:boundary] if event == "end"))
    outermost = tuple(name for name in completed if not any(name.startswith(f"{other}.") for other in completed))
    while heads and outermost and isinstance(modules[outermost[-1]], _DropoutNd):
        outermost = outermost[:-1]  # dropout in front of the classifier belongs to the classifier, and stays active
    everything = [name for name, _ in model.named_parameters()]
    inside = tuple(f"{name}." for name in (heads or outermost))
    parameters = frozenset(name for name in everything if name.startswith(inside) != bool(heads))
    if not outermost or all(name in parameters or not p.requires_grad for name, p in model.named_parameters()):
        raise FoveateError(f"freeze={freeze!r} leaves nothing to train, or nothing to freeze: name another module")
    _refuse_frozen_attention(model, freeze, parameters)
    return Frozen(outermost, parameters)


def _refuse_frozen_attention(model: nn.Module, freeze: str, parameters: frozenset[str]) -> None:
    frozen = {id(parameter) for name, parameter in model.named_parameters() if name in parameters}
    for site, mechanism in attentions(model).items():
        if any(id(parameter) in frozen for parameter in mechanism.parameters()):
            raise FoveateError(
                f"the attention at {site!r} lies in the frozen part (freeze={freeze!r}) and would never train: "
                "freeze up to an earlier module, or put the attention further on"
            )


@contextlib.contextmanager
def freeze_parameters(model: nn.Module, frozen: Frozen) -> Iterator[None]:
    """The frozen parameters require no gradient inside; outside, each is as it was."""
    found = [
        (parameter, parameter.requires_grad)
        for name, parameter in model.named_parameters()
        if name in frozen.parameters
    ]
    try:
        for parameter, _ in found:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in found:
            parameter.requires_grad_(required)


def trunk_features(model: nn.Module, frozen: Frozen, images: Tensor) -> Tensor:
    """What the module at the cut gives for images (B, C, H, W), in eval mode and without a gradient: (B, ...).

    The pass ends there: the tail does not run.

    Raises:
        FoveateError: it gives no single tensor for each image.
    """

    def stop(_module: nn.Module, _args: object, output: object) -> None:
        raise _Stop(output)

    try:
        with preserve_state(model, evaluation=True, no_grad=True) as hooks:
            hooks.append(model.get_submodule(frozen.cut).register_forward_hook(stop))
            model(images)
    except _Stop as stopped:
        if isinstance(stopped.features, Tensor) and stopped.features.shape[:1] == images.shape[:1]:
            return stopped.features
    raise FoveateError(f"{frozen.cut!r} gives no single tensor for each image")


@contextlib.contextmanager
def tail(model: nn.Module, frozen: Frozen) -> Iterator[nn.Module]:
    """The model without its trunk, fed with the trunk's features; its modules are back in place afterwards."""
    swapped = []
    try:
        for name in frozen.modules:
            parent, _, leaf = name.rpartition(".")
            children = model.get_submodule(parent)._modules
            swapped.append((children, leaf, children[leaf]))
            children[leaf] = nn.Identity()
        yield model
    finally:
        for children, leaf, module in swapped:
            children[leaf] = module


def is_chain(model: nn.Module, frozen: Frozen, images: Tensor) -> bool:
    """Whether the tail on the trunk's features gives what the whole model gives, to 1e-6, on some images."""
    record = record_of(model)
    read = [hook_target(model, site) for at in record.placed for site in at.maps] if record else []
    if any(f"{site}.".startswith(f"{name}.") for site in read for name in frozen.modules):
        return False  # a head in the tail reads feature maps of the trunk
    with preserve_state(model, evaluation=True, no_grad=True):
        expected = model(images)
        try:
            features = trunk_features(model, frozen, images)
            with tail(model, frozen):
                given = model(features)
        except Exception:  # noqa: BLE001 - a network that is not a chain may fail in any way here
            return False
    return given.shape == expected.shape and torch.allclose(given, expected, rtol=1e-6, atol=1e-6)
