"""What a classifier must offer to be predicted with and evaluated: a network, an exported file, or a user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.images import Preprocess

__all__ = ["Classifier", "batched_logits"]


@runtime_checkable
class Classifier(Protocol):
    """Normalised images in, logits out. No base class: any object with these four names is one.

    Attributes:
        classes: a name for each of the K outputs; None where it does not know them.
        preprocess: how images are prepared for it.
        batch: how many images it takes at a time, where this is fixed; None for any number.
    """

    @property
    def classes(self) -> tuple[str, ...] | None:
        """A name for each of the K outputs, or None."""

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared."""

    @property
    def batch(self) -> int | None:
        """The number of images in a call, or None for any number."""

    def logits(self, images: Tensor) -> Tensor:
        """Scores before the softmax.

        Args:
            images: (B, C, H, W) float32 on the CPU, normalised by :attr:`preprocess`.

        Returns:
            (B, K), of any floating point type, on any device.
        """


def batched_logits(classifier: Classifier, images: Tensor) -> Tensor:
    """Logits of any number of images, also where the classifier takes a fixed number: the last call is filled up.

    Args:
        classifier: gives the logits.
        images: (N, C, H, W), N at least 1, as :meth:`Classifier.logits` takes them.

    Returns:
        (N, K) float32 on the CPU.

    Raises:
        FoveateError: the classifier does not give two scores or more for each image.
    """
    import torch

    from foveate.scores import check_logits

    size = classifier.batch or len(images)
    parts = []
    for part in torch.split(images, size):
        missing = size - len(part) if classifier.batch else 0
        filled = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
        found = check_logits(classifier.logits(filled))
        if len(found) != len(filled):
            raise FoveateError(f"the classifier gives scores for {len(found)} images and was given {len(filled)}")
        parts.append(found[: len(part)].detach().float().cpu())
    return torch.cat(parts)
