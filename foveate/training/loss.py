"""What a training step minimises: the cross-entropy, unless a part of the model has a loss of its own.

A part (a head, say) that defines ``training_loss(scores, labels, label_smoothing)`` is asked for the loss instead; it
may use what its last forward pass kept. Where its ``changes_images`` is true, its ``training_images(images)`` makes the
images that the model sees of those of the batch. Evaluation knows nothing of either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.training.recipes.recipe import Recipe

__all__ = ["Objective"]

# Of a mixed image, a class with a smaller share is not looked for: the value of timm's recipes with this loss.
_PRESENT = 0.2


class Objective:
    """The loss of one model.

    Args:
        model: what is trained.
        recipe: its ``loss`` and ``label_smoothing``, and whether images are mixed or a teacher helps.
        cached: the model is given a frozen trunk's features and no images.
        has_teacher: a teacher helps.

    Raises:
        FoveateError: two parts have a loss of their own, a part with its own loss meets mixed images, a teacher or
            another loss, or images are needed where there are none.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe | None = None, *, cached: bool = False, has_teacher: bool = False
    ) -> None:
        recipe = recipe or Recipe()
        self.smoothing = recipe.label_smoothing
        # Smoothed targets would be compared with the threshold, and smoothing has no effect on what is 0 or 1.
        self.binary = BinaryCrossEntropy(0.0, _PRESENT) if recipe.loss == "bce" else None
        parts = {name or "the model": m for name, m in model.named_modules() if hasattr(m, "training_loss")}
        if len(parts) > 1:
            raise FoveateError(
                f"{' and '.join(repr(name) for name in parts)} each have a training loss of their own, and a model can "
                "have one: remove all but one"
            )
        asked = {
            "mixup": recipe.mixup > 0,
            "cutmix": recipe.cutmix > 0,
            "teacher": has_teacher,
            "loss='bce'": self.binary is not None,
        }
        wanted = [name for name, wants in asked.items() if wants]
        if parts and wanted:
            raise FoveateError(
                f"{next(iter(parts))!r} has a training loss of its own, which does not go with {wanted[0]}: leave one "
                "out"
            )
        if cached and wanted and wanted[0] != "loss='bce'":
            raise FoveateError(
                f"{wanted[0]} needs images, and a frozen trunk's cached features are none: take cache=False, or leave "
                "freeze out"
            )
        self.model = model
        self.part: Any = next(iter(parts.values()), None)
        self.changes_images = bool(getattr(self.part, "changes_images", False))
        if cached and self.changes_images:
            raise FoveateError(
                f"{next(iter(parts))!r} changes the images that it trains on, and a frozen trunk's cached features are "
                "none: leave freeze out, take cache=False, or set self_supervision=0"
            )

    @contextlib.contextmanager
    def images(self) -> Iterator[None]:
        """Inside, the model is given the images that the part makes of those it is called with."""
        if not self.changes_images:
            yield
            return
        part = self.part
        # A hook gets what the model gets: normalised, on its device, in its memory format.
        hook = self.model.register_forward_pre_hook(lambda _, inputs: (part.training_images(inputs[0]), *inputs[1:]))
        try:
            yield
        finally:
            hook.remove()

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, averaged over its images.

        Args:
            scores: of the model in training mode.
            labels: (B,) of the batch's images, of which the part may have made more; or (B, K), each class's share.
        """
        labels = labels.to(scores.device)
        if self.part is not None:
            own: Tensor = self.part.training_loss(scores, labels, self.smoothing)
            return own
        if self.binary is not None:
            binary: Tensor = self.binary(scores.float(), labels)
            return binary
        return F.cross_entropy(scores.float(), labels, label_smoothing=self.smoothing)
