"""The feature maps that a head reads, held for one forward pass: never on the model, and never for another pass.

A pass of the whole network is opened by a hook before the network and closed by a hook behind it. It belongs to the
thread that runs it; a pass inside a pass has maps of its own. So nothing of a pass stays: not after an error, not in a
copy of the network, not after a tracer of ``torch.export`` has run it.

Where ``forward_features`` and ``forward_head`` are called one by one, no hook of the whole network runs. Then the
network's first layer opens the pass, and the maps follow the tensor that ``forward_features`` gives: the module that
makes this tensor writes them down under it, as long as it lives, and the module that takes it finds them again.

A head that finds no maps of its own pass says so. It never reads those of another.
"""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from foveate.errors import FoveateError

__all__ = ["PASS_HOOKS", "begin_pass", "close_pass", "find_maps", "maps_of_pass", "open_pass", "record_map", "tie_maps"]


_Output: TypeAlias = Tensor | torch.fx.Proxy  # the latter while torch.fx traces
_Maps: TypeAlias = dict[int, Any]  # from index to an ``_Output``, which the head takes for a tensor


class ForwardPass:
    """The maps of one pass through the network with this key, which copies of a network share."""

    def __init__(self, key: str, outer: ForwardPass | None = None) -> None:
        self.key, self.outer = key, outer
        self.maps: _Maps = {}
        self.begun = False
        self.features: Tensor | None = None  # only while torch.compile traces


class _Thread(threading.local):
    """What this thread is running."""

    def __init__(self) -> None:
        self.whole: ForwardPass | None = None  # passes of whole networks, the innermost; each knows the one around it
        self.parts: dict[str, ForwardPass] = {}  # passes that no whole network opened
        self.found: dict[str, _Maps] = {}  # maps of the tensor that the end of the network was just given


_THREAD = _Thread()
# forward_features may run in one thread and forward_head in another. Entries go with their tensors.
_MAPS_OF_FEATURES: MutableMapping[Tensor, dict[int, Tensor | None]] = WeakIdKeyDictionary()


def _whole(key: str) -> ForwardPass | None:
    running = _THREAD.whole
    while running is not None and running.key != key:
        running = running.outer
    return running


def open_pass(key: str, _module: nn.Module, _args: object) -> None:
    """Before the network runs."""
    _THREAD.whole = ForwardPass(key, _THREAD.whole)
    _THREAD.parts.pop(key, None)  # of a pass that an error ended


def close_pass(key: str, _module: nn.Module, _args: object, _output: object) -> None:
    """When the network has run, or has raised an error."""
    running = _whole(key)
    if running is not None:
        _THREAD.whole = running.outer
    _THREAD.found.pop(key, None)


def begin_pass(key: str, split: bool, _module: nn.Module, _args: object) -> None:
    """Before the network's first layer runs, which it does once in a pass."""
    running = _whole(key)
    if running is not None and not running.begun:
        running.begun = True
    elif split or torch.compiler.is_compiling():
        _THREAD.parts[key] = ForwardPass(key)


def record_map(key: str, index: int, _module: nn.Module, _args: object, output: _Output) -> None:
    """Hold a module's output, a feature map, for the head of this pass."""
    running = _THREAD.parts.get(key) or _whole(key)
    if running is None and isinstance(output, torch.fx.Proxy):  # torch.fx traces without the hooks of first layers
        running = _THREAD.parts[key] = ForwardPass(key)
    if running is not None:  # else a part of the network runs alone, as when activations are computed again
        running.maps[index] = output


def tie_maps(key: str, _module: nn.Module, _args: object, output: Tensor) -> None:
    """Tie the maps to the features that this module gives, if no whole network runs."""
    running = _THREAD.parts.get(key)
    if running is None:
        return
    if torch.compiler.is_compiling():
        running.features = output
        return
    del _THREAD.parts[key]
    # A map that is the tensor itself, or a view of it, would keep it alive for ever.
    _MAPS_OF_FEATURES[output] = {index: None if each is output else each for index, each in running.maps.items()}


def find_maps(key: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Find the maps of the features that this module takes, if no whole network gave them."""
    _THREAD.found.pop(key, None)
    features = args[0] if args else None
    running = _THREAD.parts.get(key)
    if running is not None and running.features is not None:
        if running.features is features:
            _THREAD.found[key] = running.maps
        del _THREAD.parts[key]
    elif features is not None and not torch.compiler.is_compiling():
        tied = _MAPS_OF_FEATURES.get(features)
        if tied is not None:
            _THREAD.found[key] = {index: features if each is None else each for index, each in tied.items()}


def maps_of_pass(key: str, count: int, *, split: bool) -> list[Tensor]:
    """The feature maps of the pass that has come to the head, in its order.

    Args:
        key: of the network.
        count: of the maps.
        split: whether the network gives ``forward_head`` what ``forward_features`` gives, to which the maps are tied.

    Raises:
        FoveateError: they are not there, as when the classifier is run alone.
    """
    running = _whole(key)
    maps = _THREAD.found.pop(key, None) or (running.maps if running is not None else {})
    if not split and key in _THREAD.parts:
        maps = _THREAD.parts.pop(key).maps
    if len(maps) != count:
        raise FoveateError(
            "the head in the classifier's place reads feature maps of the same forward pass, and finds none: run the "
            "whole network, or give forward_head the very tensor that forward_features returned"
        )
    found = [maps[index] for index in range(count)]
    if running is not None and maps is running.maps:
        running.maps = {}
    return found


PASS_HOOKS = (open_pass, close_pass, begin_pass, record_map, tie_maps, find_maps)
