"""The maps that the inserted mechanisms themselves compute, read through ``attend`` and ``map_axes`` only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.explanations.borrow import borrowed
from foveate.explanations.result import Map

__all__ = ["attention_maps", "split_map"]

# What one index of an axis is called in a map's name, and the axes that are averaged out of a map.
_WORDS = {"g": "subspace", "k": "head", "n": "map"}
_AVERAGED = {"q": "places", "c": "channels"}


def attention_maps(model: nn.Module, images: Tensor) -> tuple[object, list[Map], list[tuple[str, Tensor]]]:
    """Run the model once and read the own map of each inserted mechanism, pool and head.

    A mechanism's map is ``attend`` of the input that it gets, taken in evaluation mode without gradients. A
    mechanism that runs several times shows its last map; a head that reads several feature maps shows one for each.

    Args:
        model: a network with attention inserted.
        images: (B, C, H, W), normalised.

    Returns:
        The model's output; the spatial maps, each (B, h, w); names and channel weights, each (B, c).

    Raises:
        FoveateError: no attention is inserted, or none of the mechanisms has a map of its own.
    """
    from foveate.surgery import attentions

    mechanisms = attentions(model)
    if not mechanisms:
        raise FoveateError("this model has no inserted attention to look at: insert a plan, or use method='gradcam'")
    readable = {site: module for site, module in mechanisms.items() if hasattr(module, "attend")}
    if not readable:
        kinds = ", ".join(sorted({type(module).__name__ for module in mechanisms.values()}))
        raise FoveateError(f"the inserted attention ({kinds}) has no map of its own (attend): use method='gradcam'")

    seen: dict[str, tuple[list[Map], list[tuple[str, Tensor]]]] = {}

    def keep(site: str, module: Any) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            found = module.attend(*inputs)
            levels = found if isinstance(found, tuple) else (found,)
            names = [f"{site} level {n}/{len(levels)}" if len(levels) > 1 else site for n in range(1, len(levels) + 1)]
            parts = [split_map(v, str(module.map_axes), name) for v, name in zip(levels, names, strict=True)]
            seen[site] = [m for maps, _ in parts for m in maps], [c for _, weights in parts for c in weights]

        return hook

    with borrowed(model) as hooks:
        for site, module in readable.items():
            hooks.append(module.register_forward_pre_hook(keep(site, module)))
        output = model(images.clone())

    maps = [found for site in readable if site in seen for found in seen[site][0]]
    channels = [weights for site in readable if site in seen for weights in seen[site][1]]
    return output, maps, channels


def split_map(values: Tensor, axes: str, site: str) -> tuple[list[Map], list[tuple[str, Tensor]]]:
    """Cut what ``attend`` gave into spatial maps and channel weights.

    With h and w among the axes there is one map for each index of the other axes; c, and q, the places that look,
    are averaged out first. Channel weights are what has c: averaged over q, h and w.

    Args:
        values: the tensor from ``attend``.
        axes: its axes in einops words, the batch first, as "b g h w".
        site: where the mechanism stands; it begins the names.

    Returns:
        The maps, each (B, h, w), and names with channel weights, each (B, c); float32 on the CPU.

    Raises:
        FoveateError: the tensor does not have these axes, or they cannot be drawn.
    """
    words = axes.split()
    values = values.detach().float()
    if values.ndim != len(words) or words[:1] != ["b"] or len(set(words)) != len(words):
        raise FoveateError(f"the map at {site} has the shape {tuple(values.shape)}, not the axes {axes!r} it declares")
    spatial = {"h", "w"} <= set(words)
    channels: list[tuple[str, Tensor]] = []
    if set(words) - {"q", "h", "w"} == {"b", "c"}:
        means = [place for place, word in enumerate(words) if word in ("q", "h", "w")]
        channels.append((site, (values.mean(dim=means) if means else values).cpu()))
    elif not spatial:
        raise FoveateError(f"the map at {site} has the axes {axes!r}: only 'b c' and axes with h and w can be drawn")
    if not spatial:
        return [], channels
    means = [place for place, word in enumerate(words) if word in _AVERAGED]
    note = "".join(f", mean over {_AVERAGED[words[place]]}" for place in means)
    values = values.mean(dim=means) if means else values
    words = [word for word in words if word not in _AVERAGED]
    values = values.movedim((words.index("h"), words.index("w")), (-2, -1)).cpu()
    others = [word for word in words[1:] if word not in ("h", "w")]
    word = _WORDS.get(others[0], others[0]) if len(others) == 1 else "map"
    count = math.prod(values.shape[1:-2])
    names = [f"{site} {word} {n}/{count}" if count > 1 else site for n in range(1, count + 1)]
    planes = torch.unbind(values.reshape(len(values), count, *values.shape[-2:]), dim=1)
    return [Map(name + note, plane, site) for name, plane in zip(names, planes, strict=True)], channels
