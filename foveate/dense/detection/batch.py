"""Images of several sizes in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.errors import FoveateError

__all__ = ["PaddedImages"]


@dataclass(frozen=True)
class PaddedImages:
    """Images that are filled up to one size, as torchvision's detectors take them.

    Args:
        tensors: (B, C, H, W).
        image_sizes: height and width of each image before it was filled up.
    """

    tensors: Tensor
    image_sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, images: Tensor | Sequence[Tensor], divisor: int) -> PaddedImages:
        """Fill up to the right and below with zeros, the mean colour of normalised images.

        Args:
            images: (B, C, H, W), or a sequence of (C, H_i, W_i).
            divisor: of the height and the width of the result.

        Raises:
            FoveateError: it is none of these, or there is none.
        """
        if isinstance(images, Tensor) and images.ndim != 4:
            raise FoveateError(f"a detector takes images (B, channels, H, W), or a list, not {tuple(images.shape)}")
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        if not sizes:
            raise FoveateError("a detector takes one image or more, not an empty list")
        height, width = (-(-max(of) // divisor) * divisor for of in zip(*sizes, strict=True))
        if isinstance(images, Tensor):
            return cls(F.pad(images, (0, width - sizes[0][1], 0, height - sizes[0][0])), sizes)
        padded = [F.pad(x, (0, width - w, 0, height - h)) for x, (h, w) in zip(images, sizes, strict=True)]
        return cls(torch.stack(padded), sizes)
