"""What a segmentation network minimises, averaged over images: cross-entropy, Dice, or both, of each of its outputs.

Cross-entropy is averaged over all pixels of an image, those that are ignored counting 0, as mmsegmentation does it. So
the loss of a step is the same however its images are shared out among batches and processes. Dice: Milletari, Navab,
Ahmadi, V-Net, 3DV 2016, https://arxiv.org/abs/1606.04797:

    1 - mean over the classes c in the image of  2 sum_i p_ci g_ci / (sum_i p_ci^2 + sum_i g_ci^2)

p is the softmax and g is 1 where the pixel is of class c; both sums leave out the pixels that are ignored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.data.segmentation import IGNORE
from foveate.errors import FoveateError
from foveate.scores import pixel_scores
from foveate.training.recipes.recipe import Recipe

__all__ = ["SegmentationObjective", "cross_entropy", "dice_loss"]


def cross_entropy(scores: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """() in nats, the mean over all pixels of all images, where what is ignored counts 0.

    Args:
        scores: (B, K, H, W).
        target: (B, H, W) int64 with ``IGNORE``.
        smoothing: of the labels.
    """
    found = F.cross_entropy(scores.float(), target, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing)
    return found.mean()


def dice_loss(scores: Tensor, target: Tensor) -> Tensor:
    """() the mean over the images; an image without a pixel that counts has 0.

    Args:
        scores: (B, K, H, W).
        target: (B, H, W) int64 with ``IGNORE``.
    """
    valid = (target != IGNORE)[:, None]
    p = scores.float().softmax(1) * valid
    classes = torch.where(target == IGNORE, 0, target)
    g = torch.zeros_like(p).scatter_(1, classes[:, None], 1.0) * valid
    common, size = (2 * p * g).sum((2, 3)), (p.square() + g).sum((2, 3))
    present = g.amax((2, 3)) > 0
    share = torch.where(present, common / size.clamp(min=1e-12), 0.0).sum(1) / present.sum(1).clamp(min=1)
    return torch.where(present.any(1), 1 - share, 0.0).mean()


class SegmentationObjective:
    """The loss of one model.

    Args:
        model: its ``loss_weights`` say how much each of its outputs counts, by name; without them only ``out`` counts.
        recipe: its ``loss`` and ``label_smoothing``.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        weights = getattr(model, "loss_weights", None)
        self.weights: dict[str, float] = dict(weights) if isinstance(weights, Mapping) else {"out": 1.0}
        self.parts, self.smoothing = recipe.loss.split("+"), recipe.label_smoothing

    def images(self) -> contextlib.AbstractContextManager[None]:
        """Nothing changes the images."""
        return contextlib.nullcontext()

    def loss(self, scores: object, labels: Tensor) -> Tensor:
        """() the loss of a batch, averaged over its images.

        Args:
            scores: what the model gives in training mode.
            labels: (B, H, W) of any whole number type, with ``IGNORE``.
        """
        out = pixel_scores(scores)
        outputs: Mapping[str, Tensor] = scores if isinstance(scores, Mapping) else {"out": out}
        total = torch.zeros((), device=out.device)
        target = labels.to(total.device).long()
        for name, weight in self.weights.items():
            if name not in outputs:
                raise FoveateError(f"the model has a weight for the loss of {name!r} and gives {', '.join(outputs)}")
            total = total + weight * self._one(outputs[name], target)
        return total

    def _one(self, scores: Tensor, target: Tensor) -> Tensor:
        found = torch.zeros((), device=scores.device)
        if "cross_entropy" in self.parts:
            found = found + cross_entropy(scores, target, self.smoothing)
        if "dice" in self.parts:
            found = found + dice_loss(scores, target)
        return found
