"""Images of a batch mixed with each other: mixup and CutMix, by torchvision.

Mixup: Zhang et al., https://arxiv.org/abs/1710.09412. CutMix: Yun et al., https://arxiv.org/abs/1905.04899.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.training.recipes.recipe import Recipe

__all__ = ["Mixing"]


class Mixing:
    """Mixes every image with the one before it in the batch. Draws from torch's global random numbers.

    Args:
        recipe: its ``mixup`` and ``cutmix``, at least one of which is not 0.
        classes: how many there are.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
        from torchvision.transforms import v2

        kinds: list[object] = []
        if recipe.mixup:
            kinds.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
        if recipe.cutmix:
            kinds.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
        self._mix: Any = kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (B, C, H, W) floats.
            labels: (B,) int64.

        Returns:
            Images (B, C, H, W), and the share of each class in each, (B, K) floats.
        """
        mixed, shares = self._mix(images, labels.to(images.device))
        return mixed, shares
