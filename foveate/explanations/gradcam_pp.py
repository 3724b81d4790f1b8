"""Grad-CAM++: as Grad-CAM, with a weight for each position, so that several things of one class all count.

Chattopadhyay, Sarkar, Howlader, Balasubramanian: Grad-CAM++: Improved Visual Explanations for Deep Convolutional
Networks, WACV 2018, https://arxiv.org/abs/1710.11063

    Y = exp(logit_c)        g = d logit_c / d A_k at a position
    alpha = d2Y / (2 d2Y + sum_hw(A_k) d3Y)        derivatives with respect to A_k at that position
    w_k = sum_hw(alpha relu(dY))                   map = relu(sum_k w_k A_k)

The paper's closed form: the derivatives of exp(logit) are Y g, Y g^2, Y g^3, so

    alpha = g^2 / (2 g^2 + sum_hw(A_k) g^3)

It takes the logit's own second derivatives for 0, which they are where only ReLUs, means and linear layers follow.

Here alpha = 1 / (2 + sum_hw(A_k) g): the same number without g^2, which is so small in common networks that an epsilon
in the denominator decides the result. Where the denominator is 0, as it can be for a map with a negative sum, the
formula has no value and the position counts 0. The factor Y of the weights is left out: it is one positive number for
each image, and overflows float32 beyond a logit of 88.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.explanations.gradients import weighted_map
from foveate.explanations.layers import Layer
from foveate.explanations.result import Map

__all__ = ["channel_weights", "gradcam_pp", "position_weights"]


def position_weights(maps: Tensor, gradient: Tensor) -> Tensor:
    """alpha, for each channel and position, (B, K, h, w).

    Args:
        maps: A, (B, K, h, w).
        gradient: g, (B, K, h, w).
    """
    denominator = 2 + maps.sum(dim=(2, 3), keepdim=True) * gradient
    return torch.where(denominator == 0, 0.0, 1 / denominator.masked_fill(denominator == 0, 1.0))


def channel_weights(maps: Tensor, gradient: Tensor) -> Tensor:
    """w: alpha times the positive part of the gradient, summed over the positions, (B, K, 1, 1).

    Args:
        maps: A, (B, K, h, w).
        gradient: of the logit with respect to A, (B, K, h, w).
    """
    return (position_weights(maps, gradient) * F.relu(gradient)).sum(dim=(2, 3), keepdim=True)


def gradcam_pp(
    model: nn.Module, images: Tensor, layer: Layer, target: Sequence[int] | None = None
) -> tuple[Tensor, Map]:
    """The Grad-CAM++ map of one class in each image. The formula is for maps that are not negative, as behind a ReLU.

    Arguments, result and errors as in ``weighted_map``.
    """
    return weighted_map("Grad-CAM++", channel_weights, model, images, layer, target)
