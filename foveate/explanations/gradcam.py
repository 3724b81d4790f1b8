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
from torch.nn import functional as F

from foveate.explanations.layers import Layer, slopes
from foveate.explanations.result import Map

__all__ = ["gradcam"]


def gradcam(model: nn.Module, images: Tensor, layer: Layer, target: Sequence[int] | None = None) -> tuple[Tensor, Map]:
    """The Grad-CAM map of one class in each image.

    Args:
        model: gives (B, classes) logits; left as found.
        images: (B, C, H, W), normalised.
        layer: what ``find_layer`` gives.
        target: the class of each image; without it the class with the largest logit.

    Returns:
        The logits, and the map, (B, h, w), not rescaled.

    Raises:
        FoveateError: as ``slopes``.
    """
    found = slopes(model, images, layer, target)
    weights = found.gradient.mean(dim=(2, 3), keepdim=True)
    values = F.relu((weights * found.maps).sum(dim=1))
    return found.logits, Map(f"Grad-CAM {layer.name}", values.float().cpu(), layer.name)
