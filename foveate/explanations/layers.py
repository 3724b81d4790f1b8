"""Which layer of a network is looked at, and which class of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.explanations.transformers.networks import grid_of, transformer_of
from foveate.preserve import preserve_state
from foveate.scores import predicted_classes
from foveate.surgery.trace import run

__all__ = ["Layer", "check_targets", "chosen_classes", "find_layer"]


@dataclass(frozen=True)
class Layer:
    """A module that gives a feature map.

    Attributes:
        name: its dotted name.
        nhwc: whether the map is (B, h, w, K); None where the map's shape is to tell.
        prefix: of a vision transformer, whose maps may be tokens (B, N, K): how many may stand in front of the patches.
        size: height and width of the images that it gets.
    """

    name: str
    nhwc: bool | None = None
    prefix: int | None = None
    size: tuple[int, int] = (0, 0)

    def check(self, output: object) -> None:
        """Make sure that the module gave a feature map, whichever of its axes are spatial.

        Raises:
            FoveateError: it did not.
        """
        if not _is_map(output) and self._patches(output) is None:
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise FoveateError(f"layer {self.name!r} gives {given}, no (B, K, h, w) feature map; choose another layer")

    def channels_first(self, output: Tensor) -> Tensor:
        """What the module gave, as (B, K, h, w); of tokens those of the patches."""
        patches = self._patches(output)
        if patches is not None:
            first, grid = patches
            return output[:, first:].transpose(1, 2).reshape(len(output), output.shape[2], *grid)
        return output.permute(0, 3, 1, 2) if self.nhwc else output

    def _patches(self, output: object) -> tuple[int, tuple[int, int]] | None:
        """Of tokens (B, N, K) the first that is of a patch, and the rows and columns of the patches."""
        if self.prefix is None or not isinstance(output, Tensor) or output.ndim != 3:
            return None
        for first in (self.prefix, 0):
            grid = grid_of(output.shape[1] - first, *self.size)
            if grid is not None and output.shape[1] - first > 1:
                return first, grid
        return None

    def settled(self, model: nn.Module, output: Tensor, images: Tensor) -> Layer:
        """The same with ``nhwc`` known: the spatial axes are the two sides with the image's proportions.

        Where these are not the last two alone, the whole network is looked at.
        """
        if self.nhwc is not None or output.ndim == 3:
            return self
        (one, two, three), (height, width) = output.shape[1:], images.shape[2:]
        # Each step of stride 2 may round a side up or down, by less than one position in the end.
        first, last = (abs(h / height - w / width) <= 1 / min(height, width) for h, w in ((one, two), (two, three)))
        alone = last and not first
        return replace(self, nhwc=False) if alone else find_layer(model, images, self.name, look=True)


def _is_map(output: object) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4 and sum(side > 1 for side in output.shape[1:]) > 1


def find_layer(
    model: nn.Module, images: Tensor, name: str | None = None, *, look: bool = False, within: str = ""
) -> Layer:
    """The layer of this name, or the one that gives the last feature map before the pooling.

    Of all modules that give a feature map with more than one position, in the order in which they finish, the last one;
    pooling layers and layers that do nothing in evaluation mode do not count. One pass over zeros of the images' size
    tells this, and which of a map's axes are spatial. Of a vision transformer it is what enters the attention of its
    last block; its patches are the positions.

    Args:
        model: left as found.
        images: (B, C, H, W); only their size counts.
        name: the dotted name of a module; without it the last feature map.
        look: run the pass for a layer with a name, too: it tells which axes are spatial.
        within: the dotted name of a part; without a name, the last feature map in it.

    Raises:
        FoveateError: there is no such module, or no module gives a feature map.
    """
    modules = dict(model.named_modules())
    if name is not None and (not name or name not in modules):
        raise FoveateError(f"no layer is called {name!r}; {near(name, filter(None, modules))}")
    transformer = transformer_of(model)
    if name is not None and not look:
        return Layer(name, None, transformer.prefix if transformer else None, (images.shape[2], images.shape[3]))
    if (
        name is None
        and transformer is not None
        and f"{transformer.last_map}.".startswith(f"{within}." if within else "")
    ):
        return Layer(transformer.last_map, None, transformer.prefix, (images.shape[2], images.shape[3]))
    last, start = "", f"{within}." if within else ""

    def note(of: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, _: object, output: object) -> None:
            nonlocal last
            idle = isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d) or "Pool" in type(module).__name__
            if _is_map(output) and not idle:
                last = of

        return hook

    with preserve_state(model, evaluation=True, no_grad=True) as hooks:
        looked_at = [of for of in modules if of and of.startswith(start)]
        hooks += [modules[of].register_forward_hook(note(of)) for of in looked_at]
        channels, height, width = images.shape[1:]
        seen = run(model, (channels, height, width))
    if name is None and not last:
        raise FoveateError("no layer of this model gives a (B, K, h, w) feature map larger than 1x1 for these images")
    name = last if name is None else name
    return Layer(name, seen[name].nhwc)


def chosen_classes(target: Sequence[int] | None, logits: Tensor) -> Tensor:
    """The class of each image, (B,): the given ones, else those with the largest logit.

    Raises:
        FoveateError: the model has no class of this index.
    """
    if target is None:
        return predicted_classes(logits)
    check_targets(target, logits.shape[1])
    return torch.as_tensor(target, device=logits.device)


def check_targets(target: Sequence[int], count: int) -> None:
    """Make sure that a model of ``count`` classes has those of some images.

    Raises:
        FoveateError: it has no class of this index.
    """
    for index in target:
        if not 0 <= index < count:
            raise FoveateError(f"target={index}: the model has {count} classes, counted from 0 to {count - 1}")
