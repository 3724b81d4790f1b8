"""Grad-CAM: where the last feature maps speak for a class.

Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, ICCV 2017, https://arxiv.org/abs/1610.02391

    alpha_k = mean_hw(d logit_c / d A_k)        map = relu(sum_k alpha_k A_k)

As in the paper: the gradient is of the logit, before any softmax. On a network that ends in global average pooling
and one linear layer, alpha_k = w_k^c / N with N = h w, so that N times the map is relu(CAM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError, near
from foveate.explanations.borrow import borrowed
from foveate.explanations.result import Map

__all__ = ["gradcam", "last_feature_map"]


def gradcam(
    model: nn.Module, images: Tensor, target: Sequence[int] | None = None, layer: str | None = None
) -> tuple[Tensor, Map]:
    """The Grad-CAM map of one class in each image.

    Works on frozen models: the gradient is taken with respect to the layer's output, a fresh leaf of the graph. No
    parameter's ``grad`` is written. A layer that runs several times counts with its last run.

    Args:
        model: gives (B, classes) logits.
        images: (B, C, H, W), normalised.
        target: the class of each image; without it the class with the largest logit.
        layer: the dotted name of a module whose output is (B, K, h, w); without it ``last_feature_map``.

    Returns:
        The model's output, and the map, (B, h, w), not rescaled.

    Raises:
        FoveateError: the layer does not exist, gives no feature map, or has no part in the logits; or the model
            gives no logits, or has no class of this index.
    """
    if getattr(model, "output_fmt", None) == "NHWC":
        raise FoveateError(f"gradcam reads (B, K, h, w) feature maps; {type(model).__name__} keeps its channels last")
    layer = last_feature_map(model, images[:1]) if layer is None else layer
    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        raise FoveateError(f"no layer is called {layer!r}; {near(layer, filter(None, modules))}")
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[-2:].numel() == 1:
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise FoveateError(f"layer {layer!r} gives {given}, no (B, K, h, w) feature map; choose another layer")
        # The rest of the network gets a copy, so that an operation in place cannot change the leaf.
        leaves[:] = [output.detach().requires_grad_()]
        return leaves[0].clone()

    with borrowed(model) as hooks, torch.enable_grad():
        hooks.append(modules[layer].register_forward_hook(cut))
        output = model(images.clone())
        if not leaves:
            raise FoveateError(f"layer {layer!r} does not run when the model sees an image; choose another layer")
        logits = check_logits(output)
        classes = logits.argmax(dim=1) if target is None else _classes(target, logits)
        score = logits.gather(1, classes[:, None]).sum()
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score, leaves, allow_unused=True)
    if gradient is None:
        raise FoveateError(f"the logits do not depend on layer {layer!r}; choose another layer")
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    values = F.relu((weights * leaves[0].detach().float()).sum(dim=1))
    return logits.detach(), Map(f"Grad-CAM {layer}", values.cpu(), layer)


def last_feature_map(model: nn.Module, images: Tensor) -> str:
    """The name of the module that gives the last feature map before the pooling.

    Of all modules that give (B, K, h, w) with more than one place, in the order in which they finish, the last one;
    pooling layers and layers that do nothing in evaluation mode do not count.

    Raises:
        FoveateError: no module gives a feature map.
    """
    found = ""

    def note(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            nonlocal found
            idle = isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d) or "Pool" in type(module).__name__
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2:].numel() > 1 and not idle:
                found = name

        return hook

    with borrowed(model) as hooks:
        hooks += [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
        model(images.clone())
    if not found:
        raise FoveateError("no layer of this model gives a (B, K, h, w) feature map larger than 1x1 for these images")
    return found


def check_logits(output: Any) -> Tensor:
    """The logits in a model's output.

    Raises:
        FoveateError: the output is not (B, classes) with two classes or more.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        given = f"the shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise FoveateError(f"the model must give (B, classes) logits of two classes or more, not {given}")
    return logits


def _classes(target: Sequence[int], logits: Tensor) -> Tensor:
    count = logits.shape[1]
    for index in target:
        if not 0 <= index < count:
            raise FoveateError(f"target={index}: the model has {count} classes, counted from 0 to {count - 1}")
    return torch.as_tensor(target, device=logits.device)
