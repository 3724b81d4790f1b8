"""Cut what ``attend`` gives into maps that can be drawn, by the axes that it declares."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.errors import FoveateError
from foveate.explanations.result import Map

__all__ = ["EACH_CLASS", "check_axes", "class_maps", "map_planes", "split_map"]

# What one index of an axis is called in a map's name, and the axes that are averaged out of a map.
_WORDS = {"g": "subspace", "k": "head", "n": "map"}
_AVERAGED = {"q": "positions", "c": "channels"}
EACH_CLASS = 16  # with so many classes at most, each class's map is given


def check_axes(values: Tensor, axes: str, site: str) -> list[str]:
    """The words of a map's axes.

    Args:
        values: the tensor from ``attend``.
        axes: its axes in einops words, the batch first, as "b g h w".
        site: where the attention module stands, for the error.

    Raises:
        FoveateError: the tensor does not have these axes, or they are neither spatial nor of channels.
    """
    words = axes.split()
    if values.ndim != len(words) or words[:1] != ["b"] or len(set(words)) != len(words):
        raise FoveateError(f"the map at {site} has the shape {tuple(values.shape)}, not the axes {axes!r} it declares")
    if not {"h", "w"} <= set(words) and set(words) - {"q"} != {"b", "c"}:
        raise FoveateError(f"the map at {site} has the axes {axes!r}: only 'b c' and axes with h and w can be drawn")
    return words


def map_planes(values: Tensor, axes: str, site: str) -> Tensor:
    """A map as (B, n, h, w): averaged over query positions and channels, one plane for each index of the other axes.

    Only in operations that ``torch.export`` writes down for any size and batch.

    Args:
        values: the tensor from ``attend``.
        axes: its axes in einops words, h and w among them.
        site: where the module stands, for the error.

    Raises:
        FoveateError: the tensor does not have these axes, or they cannot be drawn.
    """
    words = check_axes(values, axes, site)
    means = [place for place, word in enumerate(words) if word in _AVERAGED]
    values = values.mean(dim=means) if means else values
    words = [word for word in words if word not in _AVERAGED]
    order = [
        0,
        *(n for n, word in enumerate(words) if n and word not in ("h", "w")),
        words.index("h"),
        words.index("w"),
    ]
    values = values if order == sorted(order) else values.permute(order)
    if len(words) == 3:
        return values.unsqueeze(1)
    return values if len(words) == 4 else values.flatten(1, -3)


def split_map(values: Tensor, axes: str, site: str) -> tuple[list[Map], list[tuple[str, Tensor]]]:
    """Cut a map into spatial maps and channel weights.

    With h and w among the axes there is one map for each index of the other axes; c, and q, the query positions,
    are averaged out first. Channel weights are what has c: averaged over q, h and w.

    Args:
        values: the tensor from ``attend``.
        axes: its axes in einops words, the batch first, as "b g h w".
        site: where the module stands; it begins the names.

    Returns:
        The maps, each (B, h, w), and names with channel weights, each (B, c); float32 on the CPU.

    Raises:
        FoveateError: the tensor does not have these axes, or they cannot be drawn.
    """
    words = check_axes(values, axes, site)
    values = values.detach().float()
    spatial = {"h", "w"} <= set(words)
    channels: list[tuple[str, Tensor]] = []
    if set(words) - {"q", "h", "w"} == {"b", "c"}:
        means = [place for place, word in enumerate(words) if word in ("q", "h", "w")]
        channels.append((site, (values.mean(dim=means) if means else values).cpu()))
    if not spatial:
        return [], channels
    note = "".join(f", mean over {_AVERAGED[word]}" for word in words if word in _AVERAGED)
    planes = map_planes(values, axes, site).cpu()
    words = [word for word in words if word not in _AVERAGED]
    others = [word for word in words[1:] if word not in ("h", "w")]
    word = _WORDS.get(others[0], others[0]) if len(others) == 1 else "map"
    count = planes.shape[1]
    names = [f"{site} {word} {n}/{count}" if count > 1 else site for n in range(1, count + 1)]
    return [Map(name + note, plane, site) for name, plane in zip(names, planes.unbind(1), strict=True)], channels


def class_maps(values: Tensor, chosen: Tensor, site: str) -> list[Map]:
    """The map of each image's own class; after it, of few classes, the map of each.

    Args:
        values: (B, K, h, w), a map for each class.
        chosen: (B,) the class of each image.
        site: begins the names.
    """
    found = [Map(f"{site} class map", values[torch.arange(len(values)), chosen], site, chosen)]
    count = values.shape[1]
    if count <= EACH_CLASS:
        every = [(f"{site} class {k}", values[:, k], torch.full_like(chosen, k)) for k in range(count)]
        found += [Map(name, plane, site, targets) for name, plane, targets in every]
    return found
