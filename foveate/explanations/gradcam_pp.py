"""Grad-CAM++: as Grad-CAM, with a weight for each place, so that several things of one class all count.

Chattopadhyay, Sarkar, Howlader, Balasubramanian: Grad-CAM++: Improved Visual Explanations for Deep Convolutional
Networks, WACV 2018, https://arxiv.org/abs/1710.11063

    Y = exp(logit_c)        g = d logit_c / d A_k at a place
    alpha = d2Y / (2 d2Y + sum_hw(A_k) d3Y)        derivatives with respect to A_k at that place
    w_k = sum_hw(alpha relu(dY))                   map = relu(sum_k w_k A_k)

The paper's closed form: the derivatives of exp(logit) are Y g, Y g^2, Y g^3, so

    alpha = g^2 / (2 g^2 + sum_hw(A_k) g^3)

It takes the logit's own second derivatives for 0, which they are where only ReLUs, means and linear layers follow.

Here alpha = 1 / (2 + sum_hw(A_k) g): the same number without g^2, which is so small in common networks that an epsilon
in the denominator decides the result. Where the denominator is 0, as it can be for a map with a negative sum, the
formula has no value and the place counts 0. The factor Y of the weights is left out: it is one positive number for each
image, and overflows float32 beyond a logit of 88.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.explanations.layers import Layer, slopes
from foveate.explanations.result import Map

__all__ = ["gradcam_pp", "place_weights"]


def place_weights(maps: Tensor, gradient: Tensor) -> Tensor:
    """alpha, for each channel and place.

    Args:
        maps: A, (B, K, h, w).
        gradient: g, (B, K, h, w).
    """
    denominator = 2 + maps.sum(dim=(2, 3), keepdim=True) * gradient
    return torch.where(denominator == 0, 0.0, 1 / denominator.masked_fill(denominator == 0, 1.0))


def gradcam_pp(
    model: nn.Module, images: Tensor, layer: Layer, target: Sequence[int] | None = None
) -> tuple[Tensor, Map]:
    """The Grad-CAM++ map of one class in each image.

    Args:
        model: gives (B, classes) logits; left as found.
        images: (B, C, H, W), normalised.
        layer: what ``find_layer`` gives. The formula is for maps that are not negative, as behind a ReLU.
        target: the class of each image; without it the class with the largest logit.

    Returns:
        The logits, and the map, (B, h, w), not rescaled.

    Raises:
        FoveateError: as ``slopes``.
    """
    found = slopes(model, images, layer, target)
    alpha = place_weights(found.maps, found.gradient)
    weights = (alpha * F.relu(found.gradient)).sum(dim=(2, 3), keepdim=True)
    values = F.relu((weights * found.maps).sum(dim=1))
    return found.logits, Map(f"Grad-CAM++ {layer.name}", values.float().cpu(), layer.name)
