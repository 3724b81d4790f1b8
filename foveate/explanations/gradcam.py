"""Grad-CAM: where the last feature maps speak for a class.

Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, ICCV 2017, https://arxiv.org/abs/1610.02391

    alpha_k = mean_hw(d logit_c / d A_k)        map = relu(sum_k alpha_k A_k)

As in the paper: the gradient is of the logit, before any softmax. On a network that ends in global average pooling
and one linear layer, alpha_k = w_k^c / N with N = h w, so that N times the map is relu(CAM).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from foveate.explanations.gradients import weighted_map
from foveate.explanations.layers import Layer
from foveate.explanations.result import Map

__all__ = ["gradcam", "mean_gradient"]


def mean_gradient(_: Tensor, gradient: Tensor) -> Tensor:
    """alpha: the mean of each channel's gradient over the positions, (B, K, 1, 1).

    Args:
        gradient: of the logit with respect to A, (B, K, h, w).
    """
    return gradient.mean(dim=(2, 3), keepdim=True)


def gradcam(model: nn.Module, images: Tensor, layer: Layer, target: Sequence[int] | None = None) -> tuple[Tensor, Map]:
    """The Grad-CAM map of one class in each image. Arguments, result and errors as in ``weighted_map``."""
    return weighted_map("Grad-CAM", mean_gradient, model, images, layer, target)
