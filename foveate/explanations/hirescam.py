"""HiResCAM: each position weighed by its own gradient, so that the map holds what the network computed there.

Draelos, Carin: Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks, 2020,
https://arxiv.org/abs/2011.08891

    map = sum_k (d logit_c / d A_k) A_k        at each position

As in the paper, without a ReLU: negative positions speak against the class. What it adds to Grad-CAM: that one averages
the gradient over all positions first, so it can light up positions that the class does not use, wherever the layer is
not the last one before global average pooling. There, Grad-CAM before its ReLU is the same. Where one linear layer
follows, with weights of its own for each position, the sum of this map plus the bias is the logit.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from foveate.explanations.gradients import weighted_map
from foveate.explanations.layers import Layer
from foveate.explanations.result import Map

__all__ = ["hirescam", "own_gradient"]


def own_gradient(_: Tensor, gradient: Tensor) -> Tensor:
    """Each position's own gradient, (B, K, h, w).

    Args:
        gradient: of the logit with respect to A, (B, K, h, w).
    """
    return gradient


def hirescam(model: nn.Module, images: Tensor, layer: Layer, target: Sequence[int] | None = None) -> tuple[Tensor, Map]:
    """The HiResCAM map of one class in each image, of either sign.

    Arguments, result and errors as in ``weighted_map``.
    """
    return weighted_map("HiResCAM", own_gradient, model, images, layer, target, positive=False)
