"""The gradient of a class's logit with respect to a layer's feature maps, and the map that weighs the channels by it.

The methods that use it differ in their weights alone. Everything runs on the caller's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.explanations.layers import Layer, chosen_classes
from foveate.explanations.result import Map
from foveate.preserve import preserve_state
from foveate.scores import check_logits

__all__ = ["Gradients", "layer_gradients", "weighted_map"]

Weights = Callable[[Tensor, Tensor], Tensor]
"""Feature maps and gradients, (B, K, h, w) each -> weights, (B, K, 1, 1) or (B, K, h, w)."""


@dataclass(frozen=True)
class Gradients:
    """A layer's feature maps and the gradients with respect to them.

    Attributes:
        logits: (B, classes).
        maps: (B, K, h, w), the layer's output, at least float32.
        gradient: (B, K, h, w), of each image's logit of its class with respect to ``maps``.
    """

    logits: Tensor
    maps: Tensor
    gradient: Tensor


def layer_gradients(model: nn.Module, images: Tensor, layer: Layer, target: Sequence[int] | None = None) -> Gradients:
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

    def cut(_: nn.Module, __: object, output: Tensor) -> Tensor:
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
    return Gradients(logits.detach(), maps, gradient)


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def weighted_map(
    title: str,
    weights: Weights,
    model: nn.Module,
    images: Tensor,
    layer: Layer,
    target: Sequence[int] | None = None,
    *,
    positive: bool = True,
) -> tuple[Tensor, Map]:
    """The map of one class in each image: the sum over the channels of weight times feature map.

    Args:
        title: of the map; the layer's name is put behind it.
        weights: of each channel, or of each channel and position, from feature maps and gradients.
        model: gives (B, classes) logits; left as found.
        images: (B, C, H, W), normalised.
        layer: what ``find_layer`` gives.
        target: the class of each image; without it the class with the largest logit.
        positive: negative values become 0.

    Returns:
        The logits, and the map, (B, h, w), not rescaled.

    Raises:
        FoveateError: as ``layer_gradients``.
    """
    found = layer_gradients(model, images, layer, target)
    values = (weights(found.maps, found.gradient) * found.maps).sum(dim=1)
    values = F.relu(values) if positive else values
    return found.logits, Map(f"{title} {layer.name}", values.float().cpu(), layer.name)
