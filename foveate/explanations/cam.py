"""CAM: what each position adds to a class's logit, on networks that end in global average pooling and one linear layer.

Zhou, Khosla, Lapedriza, Oliva, Torralba: Learning Deep Features for Discriminative Localization, CVPR 2016,
https://arxiv.org/abs/1512.04150

    logit_c = sum_k w_k^c mean_hw(A_k) + b_c        map = sum_k w_k^c A_k

So mean_hw(map) + b_c = logit_c, exactly; the map has both signs. It needs no gradient. In a network whose last layer is
a 1x1 convolution with global average pooling behind it, as Network in Network, the class's own feature map is the map.
Which of the two forms a network has is not guessed: what it computes from the images at hand must agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.explanations.layers import Layer, chosen_classes
from foveate.explanations.result import Map
from foveate.preserve import preserve_state
from foveate.scores import check_logits
from foveate.surgery.classifier import classifier_of

__all__ = ["cam", "class_weights"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative to a channel's mean size; any other dtype: 0.05


def cam(model: nn.Module, images: Tensor, layer: Layer, target: Sequence[int] | None = None) -> tuple[Tensor, Map]:
    """The class activation map of one class in each image.

    Args:
        model: ends in global average pooling and one linear layer; left as found.
        images: (B, C, H, W), normalised.
        layer: the last feature map, as ``find_layer`` gives it.
        target: the class of each image; without it the class with the largest logit.

    Returns:
        The logits, and the map, (B, h, w), of either sign, not rescaled.

    Raises:
        FoveateError: the network ends in another way, gives no logits, or has no class of this index.
    """
    logits, maps, weights = class_weights(model, images, layer)
    classes = chosen_classes(target, logits)
    if weights is None:
        values = maps[torch.arange(len(maps), device=maps.device), classes]
    else:
        values = torch.einsum("bk,bkhw->bhw", weights[classes], maps)
    return logits, Map(f"CAM {layer.name}", values.float().cpu(), layer.name)


def class_weights(model: nn.Module, images: Tensor, layer: Layer) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a class activation map is made of.

    Args:
        model: ends in global average pooling and one linear layer; left as found.
        images: (B, C, H, W), normalised.
        layer: the last feature map.

    Returns:
        The logits (B, classes), the feature maps (B, K, h, w), and the weights (classes, K) of the linear layer; None
        in place of the weights where the feature map of a class is its map.

    Raises:
        FoveateError: the network ends in another way.
    """
    names = _classifiers(model, images)
    kept: dict[str, Tensor] = {}

    def keep_map(_: nn.Module, __: object, output: Tensor) -> None:
        layer.check(output)
        kept["maps"] = layer.channels_first(output).clone()

    def keep_input(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept["pooled"] = args[0].clone()

    with preserve_state(model, evaluation=True, no_grad=True) as hooks:
        hooks.append(model.get_submodule(layer.name).register_forward_hook(keep_map))
        if len(names) == 1:
            hooks.append(model.get_submodule(names[0]).register_forward_pre_hook(keep_input))
        logits = check_logits(model(images.clone())).detach()
    maps = kept["maps"].detach()
    last = model.get_submodule(names[0]) if len(names) == 1 else None
    if (
        isinstance(last, nn.Linear | nn.Conv2d)
        and "pooled" in kept
        and _are_means(kept["pooled"].flatten(1), maps)
        and _are_logits(logits, last, kept["pooled"])
    ):
        return logits, maps, last.weight.detach().flatten(1)
    if _are_means(logits, maps):
        return logits, maps, None
    raise FoveateError(
        f"cam needs global average pooling and one linear layer behind the last feature map, {layer.name!r}, and "
        f"{type(model).__name__} has something else there: use method='gradcam' or 'hirescam'"
    )


def _classifiers(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    channels, height, width = images.shape[1:]
    try:
        return classifier_of(model, (channels, height, width))
    except FoveateError:
        return ()


def _are_logits(logits: Tensor, last: nn.Linear | nn.Conv2d, pooled: Tensor) -> bool:
    """Whether the logits are the layer's weights times the pooled features and its biases, up to rounding.

    A hidden layer may have a classifier's name, and something may come behind the last layer.
    """
    weight, features = last.weight.detach().flatten(1), pooled.detach().flatten(1)
    if weight.shape != (logits.shape[1], features.shape[1]):
        return False
    bias = torch.zeros_like(logits[0]) if last.bias is None else last.bias.detach()
    scale = F.linear(features.abs(), weight.abs(), bias.abs())
    tolerance = TOLERANCE.get(logits.dtype, 0.05) * scale
    return bool(((F.linear(features, weight, bias) - logits).abs() <= tolerance).all())


def _are_means(given: Tensor, maps: Tensor) -> bool:
    """Whether values (B, K) are the means of maps (B, K, h, w), up to rounding at the scale of each channel.

    At one scale for all, a channel of large values would excuse whatever the others hold.
    """
    mean, size = maps.mean(dim=(2, 3)), maps.abs().mean(dim=(2, 3)).amax(dim=0)
    tolerance = TOLERANCE.get(maps.dtype, 0.05) * size.clamp_min(1e-6 * size.max())
    return given.shape == mean.shape and bool(((given - mean).abs() <= tolerance).all())
