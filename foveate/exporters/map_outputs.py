"""Maps as outputs of an exported network: what ``explain`` shows, computed by the file itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.explanations.attention import Reader, readers
from foveate.explanations.axes import map_planes
from foveate.explanations.cam import class_weights
from foveate.explanations.layers import Layer, find_layer
from foveate.io import JsonObject
from foveate.scores import predicted_classes

__all__ = ["Kept", "MapOutput", "map_outputs"]

Hook = Callable[..., None]
Kept: TypeAlias = dict[str, Any]
"""What a forward pass left for the maps, by their names: a tensor, or several."""


class MapOutput(Protocol):
    """One more output of the exported network."""

    name: str
    axes: str
    description: JsonObject

    def watch(self, found: Kept) -> list[torch.utils.hooks.RemovableHandle]:
        """Have a forward pass put what the map is made of into ``found``."""
        ...

    def values(self, found: Kept, logits: Tensor) -> Tensor:
        """The map, from what the forward pass put there."""
        ...


def map_outputs(model: nn.Module, images: Tensor, asked: Sequence[str]) -> list[MapOutput]:
    """The outputs for the maps that are asked for.

    Args:
        model: a copy of the network in eval mode: hooks are put on its modules while it runs.
        images: (B, C, H, W), normalised, for one pass that shows where the maps are.
        asked: "attention", "cam".

    Raises:
        FoveateError: the network has no such map.
    """
    found: list[MapOutput] = []
    if "cam" in asked:
        layer = find_layer(model, images)
        weights = class_weights(model, images, layer)[2]
        found.append(_Cam(model, layer, weights))
    if "attention" in asked:
        own = [_OwnMaps(reader, f"attention_{index}") for index, reader in enumerate(_spatial(model))]
        if not own:
            raise FoveateError(
                "maps='attention': no inserted attention has a spatial map of its own (SE, for one, weighs channels "
                "only): leave it out, or use maps='cam'"
            )
        found += own
    return found


def _spatial(model: nn.Module) -> list[Reader]:
    return [one for one in readers(model) if one.per_class or "h" in str(one.module.map_axes).split()]


class _Cam:
    """The class activation map of the class with the largest logit: sum_k w_k f_k, (B, h, w)."""

    name, axes = "cam", "b h w"

    def __init__(self, model: nn.Module, layer: Layer, weights: Tensor | None) -> None:
        self.layer, self.weights = layer, weights
        self._module = model.get_submodule(layer.name)
        self.description = {"site": layer.name, "maps": ["class activation map of the predicted class"]}

    def watch(self, found: Kept) -> list[torch.utils.hooks.RemovableHandle]:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            found[self.name] = self.layer.channels_first(output)

        return [self._module.register_forward_hook(keep)]

    def values(self, found: Kept, logits: Tensor) -> Tensor:
        maps: Tensor = found[self.name]
        chosen = predicted_classes(logits)
        if self.weights is None:
            return _of_class(maps, chosen)
        rows = self.weights.to(maps.dtype)[chosen]
        # A product of matrices: converters know it better than einsum.
        return (rows.unsqueeze(1) @ maps.flatten(2)).reshape(maps.shape[0], *maps.shape[2:])


class _OwnMaps:
    """The own maps of one attention module, (B, n, h, w)."""

    axes = "b n h w"

    def __init__(self, reader: Reader, name: str) -> None:
        self.reader, self.name = reader, name
        self.description: JsonObject = {"site": reader.name, "mechanism": type(reader.module).__name__}

    def watch(self, found: Kept) -> list[torch.utils.hooks.RemovableHandle]:
        def keep(module: Any, inputs: tuple[Any, ...]) -> None:
            spatial = hasattr(module, "spatial_probabilities")
            classes = module.spatial_probabilities(inputs[0]) if spatial else None
            found[self.name] = module.attend(*inputs), classes

        return [self.reader.module.register_forward_pre_hook(keep)]

    def values(self, found: Kept, logits: Tensor) -> Tensor:
        attended, classes = found[self.name]
        chosen = predicted_classes(logits)
        if self.reader.per_class and not isinstance(attended, tuple) and classes is None:
            # Several heads are averaged, as `explain` does.
            return _of_class(attended.mean(dim=2) if attended.ndim == 5 else attended, chosen).unsqueeze(1)
        levels = attended if isinstance(attended, tuple) else (attended,)
        planes = [map_planes(level, str(self.reader.module.map_axes), self.reader.name) for level in levels]
        if not _all_of_one_size(planes):  # all as large as the first, which is the finest, resized as for a picture
            resize = partial(nn.functional.interpolate, size=planes[0].shape[2:], mode="bilinear", align_corners=False)
            planes[1:] = map(resize, planes[1:])
        if classes is not None:
            planes.append(_of_class(classes, chosen).unsqueeze(1))
        return torch.cat(planes, dim=1) if len(planes) > 1 else planes[0]


def _of_class(maps: Tensor, chosen: Tensor) -> Tensor:
    """(B, K, h, w) and the class of each image -> (B, h, w)."""
    one = nn.functional.one_hot(chosen, maps.shape[1]).to(maps.dtype)
    return (one.unsqueeze(1) @ maps.flatten(2)).reshape(maps.shape[0], *maps.shape[2:])


def _all_of_one_size(planes: Sequence[Tensor]) -> bool:
    """Whether they are known to be; where sizes are symbols, asking whether they are equal would fix them."""
    sides = [side for plane in planes for side in plane.shape[2:]]
    return len(planes) == 1 or (all(type(side) is int for side in sides) and len({p.shape[2:] for p in planes}) == 1)
