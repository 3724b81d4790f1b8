"""The maps that attention modules, pools and heads compute themselves, through ``attend`` and ``map_axes`` only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.explanations.axes import class_maps, split_map
from foveate.explanations.layers import chosen_classes
from foveate.explanations.result import Map
from foveate.explanations.transformers.maps import TokenMaps, token_maps
from foveate.explanations.transformers.networks import has_windows, transformer_of
from foveate.pooling.gap import GlobalAveragePool
from foveate.preserve import preserve_state
from foveate.scores import check_logits
from foveate.surgery.record import part, record_of, shown_names
from foveate.surgery.wrappers import Gate, mechanism_of

__all__ = ["Reader", "attention_maps", "readers"]

Channels = list[tuple[str, Tensor]]
Seen = dict[str, tuple[list[Map], Channels]]


@dataclass(frozen=True)
class Reader:
    """A module with a map of its own.

    Attributes:
        name: the site, "pool" or "head" of an inserted one, with its verb where another has this name; the dotted name
            of one that the network has anyway.
        outer: what runs in the network: the module, or the gate around it.
        module: it has ``attend`` and ``map_axes``.
        inserted: whether a plan put it there.
    """

    name: str
    outer: nn.Module
    module: Any
    inserted: bool

    @property
    def per_class(self) -> bool:
        """Whether it has a map for each class: a pool with a token per class, SAOL's scores of the positions."""
        return getattr(self.module, "classes", None) is not None or hasattr(self.module, "spatial_probabilities")


def readers(model: nn.Module) -> list[Reader]:
    """The inserted modules that have a map of their own, then those of the network itself with spatial maps.

    Of a vision transformer there may be none: ``attention_maps`` reads its tokens.

    Raises:
        FoveateError: there is none.
    """
    record = record_of(model)
    taken = [f"{at.path}." for at in record.placed] if record else []
    own: list[Reader] = []
    for name, module in model.named_modules():
        # Spatial maps: a network may have channel weights in each of its blocks.
        spatial = hasattr(module, "attend") and "h" in str(getattr(module, "map_axes", "")).split()
        if spatial and not isinstance(module, GlobalAveragePool) and not f"{name}.".startswith(tuple(taken)):
            own.append(Reader(name, module, module, False))
            taken.append(f"{name}.")
    placed = shown_names(record, [one.name for one in own])
    inserted = [(name, part(model, path)) for path, name in placed.items()]
    found = [Reader(name, outer, mechanism_of(outer), True) for name, outer in inserted if outer is not None]
    if found and not any(hasattr(one.module, "attend") for one in found):
        kinds = ", ".join(sorted({type(one.module).__name__ for one in found}))
        raise FoveateError(f"the inserted attention ({kinds}) has no map of its own (attend): use method='gradcam'")
    found = [*(one for one in found if hasattr(one.module, "attend")), *own]
    if not found and transformer_of(model) is None:
        if has_windows(model):
            raise FoveateError(
                f"{type(model).__name__} attends inside windows of the image, so no map of its attention is of the "
                "whole image: use method='gradcam'"
            )
        raise FoveateError("this model has no inserted attention to look at: insert a plan, or use method='gradcam'")
    return found


def attention_maps(
    model: nn.Module, images: Tensor, target: Sequence[int] | None = None, wanted: TokenMaps | None = None
) -> tuple[Tensor, list[Map], Channels]:
    """Run the model once and read the own map of each attention module, pool and head.

    Of a vision transformer it runs once more for the maps of its tokens, which stand behind the others.

    A module's map is ``attend`` of the input that it gets, taken in evaluation mode without gradients. A module that
    runs several times shows its last map; a head that reads several feature maps shows one for each. The name says
    what a gate lets through, and whether the module changes its input at all.

    Args:
        model: a network with attention, inserted or its own.
        images: (B, C, H, W), normalised.
        target: the class of each image, for maps that are one for each class; without it the predicted one.
        wanted: which maps of a vision transformer's tokens; where it says anything, these alone.

    Returns:
        The logits; the spatial maps, each (B, h, w); names and channel weights, each (B, c).

    Raises:
        FoveateError: there is no attention, or none of the modules has a map of its own.
    """
    transformer = transformer_of(model)
    tokens: list[Map] = []
    found = [] if transformer is not None and wanted is not None and wanted.given else readers(model)
    if transformer is not None:
        output, tokens = token_maps(model, transformer, images, wanted or TokenMaps())
        if not found:
            return check_logits(output).detach(), tokens, []
    seen: Seen = {}
    of_classes: dict[str, Tensor] = {}
    notes: dict[str, str] = {}

    with preserve_state(model, evaluation=True, no_grad=True) as hooks:
        for one in found:
            hooks.append(one.module.register_forward_pre_hook(_keep(one, seen, of_classes)))
            hooks.append(one.outer.register_forward_hook(_note(one, notes)))
        logits = check_logits(model(images.clone())).detach()

    chosen = chosen_classes(target, logits).cpu()
    maps: list[Map] = []
    channels: Channels = []
    for one in found:
        planes, weights = seen.get(one.name, ([], []))
        if one.name in of_classes:
            planes = [*planes, *class_maps(of_classes[one.name], chosen, one.name)]
        note = notes.get(one.name, "")
        maps += [Map(plane.name + note, plane.values, plane.module, plane.targets) for plane in planes]
        channels += [(name + note, values) for name, values in weights]
    return logits, [*maps, *tokens], channels


def _keep(one: Reader, seen: Seen, of_classes: dict[str, Tensor]) -> Callable[..., None]:
    module, name = one.module, one.name

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if hasattr(module, "spatial_probabilities"):
            of_classes[name] = module.spatial_probabilities(inputs[0]).detach().float().cpu()
        found = module.attend(*inputs)
        if one.per_class and not isinstance(found, tuple):
            found = found.detach().float().cpu()
            # Several heads are averaged; class_maps says nothing of it, as one head is the paper's form.
            of_classes[name] = found.mean(dim=2) if found.ndim == 5 else found
            return
        levels = found if isinstance(found, tuple) else (found,)
        names = [f"{name} level {n}/{len(levels)}" if len(levels) > 1 else name for n in range(1, len(levels) + 1)]
        parts = [split_map(v, str(module.map_axes), label) for v, label in zip(levels, names, strict=True)]
        seen[name] = (
            [Map(plane.name, plane.values, name) for maps, _ in parts for plane in maps],
            [weights for _, channels in parts for weights in channels],
        )

    return hook


def _note(one: Reader, notes: dict[str, str]) -> Callable[..., None]:
    def hook(outer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        note = f", gate {float(outer.gate.detach()):.3g}" if isinstance(outer, Gate) else ""
        given = inputs[0]
        if isinstance(given, Tensor) and isinstance(output, Tensor):
            pooled = given.mean(dim=(-2, -1)) if output.ndim != given.ndim and given.ndim == 4 else given
            pooled = pooled.unsqueeze(1).expand_as(output) if output.ndim == 3 and pooled.ndim == 2 else pooled
            idle = pooled.shape == output.shape and torch.equal(pooled, output)
            if idle and not isinstance(one.module, GlobalAveragePool):
                note += ", changes nothing"
        notes[one.name] = note

    return hook
