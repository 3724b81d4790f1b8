"""The feature maps of one layer and the gradient of a class's logit with respect to them, on the caller's own model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.preserve import preserve_state
from foveate.scores import check_logits, predicted_classes
from foveate.surgery.trace import run

__all__ = ["Layer", "Slopes", "chosen_classes", "find_layer", "slopes"]


@dataclass(frozen=True)
class Layer:
    """A module that gives a feature map.

    Attributes:
        name: its dotted name.
        nhwc: whether the map is (B, h, w, K); None where the map's shape is to tell.
    """

    name: str
    nhwc: bool | None = None

    def check(self, output: Any) -> None:
        """Make sure that the module gave a feature map, whichever of its axes are the places.

        Raises:
            FoveateError: it did not.
        """
        if not _is_map(output):
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise FoveateError(f"layer {self.name!r} gives {given}, no (B, K, h, w) feature map; choose another layer")

    def channels_first(self, output: Tensor) -> Tensor:
        """What the module gave, as (B, K, h, w)."""
        return output.permute(0, 3, 1, 2) if self.nhwc else output

    def settled(self, model: nn.Module, output: Tensor, images: Tensor) -> Layer:
        """The same with ``nhwc`` known: the places are the two sides with the image's proportions.

        Where both pairs of sides have these, the whole network is looked at.
        """
        if self.nhwc is not None:
            return self
        (one, two, three), (height, width) = output.shape[1:], images.shape[2:]
        # Each step of stride 2 may round a side up or down, by less than one place in the end.
        first, last = (abs(h / height - w / width) <= 1 / min(height, width) for h, w in ((one, two), (two, three)))
        return find_layer(model, images, self.name, look=True) if first and last else Layer(self.name, first)


def _is_map(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4 and sum(side > 1 for side in output.shape[1:]) > 1


@dataclass(frozen=True)
class Slopes:
    """What the gradient methods need.

    Attributes:
        logits: (B, classes).
        maps: (B, K, h, w), the layer's output, at least float32.
        gradient: (B, K, h, w), of each image's logit of its class with respect to ``maps``.
    """

    logits: Tensor
    maps: Tensor
    gradient: Tensor


def find_layer(model: nn.Module, images: Tensor, name: str | None = None, *, look: bool = False) -> Layer:
    """The layer of this name, or the one that gives the last feature map before the pooling.

    Of all modules that give a feature map with more than one place, in the order in which they finish, the last one;
    pooling layers and layers that do nothing in evaluation mode do not count. One pass over zeros of the images' size
    tells this, and which of a map's axes are the places.

    Args:
        model: left as found.
        images: (B, C, H, W); only their size counts.
        name: the dotted name of a module; without it the last feature map.
        look: run the pass for a layer with a name, too: it settles the places.

    Raises:
        FoveateError: there is no such module, or no module gives a feature map.
    """
    modules = dict(model.named_modules())
    if name is not None and (not name or name not in modules):
        raise FoveateError(f"no layer is called {name!r}; {near(name, filter(None, modules))}")
    if name is not None and not look:
        return Layer(name)
    last = ""

    def note(of: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            nonlocal last
            idle = isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d) or "Pool" in type(module).__name__
            if _is_map(output) and not idle:
                last = of

        return hook

    with preserve_state(model, evaluation=True, no_grad=True) as hooks:
        hooks += [module.register_forward_hook(note(of)) for of, module in modules.items() if of]
        channels, height, width = images.shape[1:]
        seen = run(model, (channels, height, width))
    if name is None and not last:
        raise FoveateError("no layer of this model gives a (B, K, h, w) feature map larger than 1x1 for these images")
    name = last if name is None else name
    return Layer(name, seen[name].nhwc)


def slopes(model: nn.Module, images: Tensor, layer: Layer, target: Sequence[int] | None = None) -> Slopes:
    """Run the model and take the gradient of one logit of each image with respect to a layer's output.

    Works on frozen models: the output becomes a fresh leaf of the graph, and nothing before it is recorded, which saves
    time and memory. No parameter's ``grad`` is written. A layer that runs several times counts with its last run.

    Args:
        model: gives (B, classes) logits; left as found.
        images: (B, C, H, W), normalised.
        layer: where.
        target: the class of each image; without it the class with the largest logit.

    Raises:
        FoveateError: the layer does not run, gives no feature map, or has no part in the logits; or the model gives no
            logits, or has no class of this index.
    """
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Any) -> Tensor:
        layer.check(output)
        # Only what follows is recorded: ``preserve_state`` began without gradients, and puts the caller's mode back.
        torch.set_grad_enabled(True)
        # The rest of the network gets a copy, so that an operation in place cannot change the leaf.
        leaves[:] = [output.detach().requires_grad_()]
        return leaves[0].clone()

    with preserve_state(model, evaluation=True, no_grad=True) as hooks:
        hooks.append(model.get_submodule(layer.name).register_forward_hook(cut))
        output = model(images.clone())
        if not leaves:
            raise FoveateError(f"layer {layer.name!r} does not run when the model sees an image; choose another layer")
        logits = check_logits(output)
        score = logits.gather(1, chosen_classes(target, logits)[:, None]).sum()
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score, leaves, allow_unused=True)
    if gradient is None:
        raise FoveateError(f"the logits do not depend on layer {layer.name!r}; choose another layer")
    layer = layer.settled(model, gradient, images)
    maps, gradient = (_precise(layer.channels_first(of)) for of in (leaves[0].detach(), gradient))
    return Slopes(logits.detach(), maps, gradient)


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def chosen_classes(target: Sequence[int] | None, logits: Tensor) -> Tensor:
    """The class of each image, (B,): the given ones, else those with the largest logit.

    Raises:
        FoveateError: the model has no class of this index.
    """
    if target is None:
        return predicted_classes(logits)
    count = logits.shape[1]
    for index in target:
        if not 0 <= index < count:
            raise FoveateError(f"target={index}: the model has {count} classes, counted from 0 to {count - 1}")
    return torch.as_tensor(target, device=logits.device)
