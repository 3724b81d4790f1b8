"""How an image is prepared whole, for networks that look at pixels: its shorter side at a length, nothing cut off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from foveate.images import Preprocess, open_image

__all__ = ["WholeImage", "resized", "scaled_size"]


def scaled_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Height and width with the shorter side at a length, in the same proportions."""
    height, width = size
    scale = shorter / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(image: Image.Image, preprocess: Preprocess, *, exact: bool = False) -> Tensor:
    """An RGB image as the network sees it: uint8 (C, h, w), its shorter side at the network's size, or exactly so."""
    from torchvision.transforms.v2 import functional as transform

    picture = _picture(image, preprocess, exact=exact)
    pixels: Tensor = transform.pil_to_tensor(picture.convert("L") if len(preprocess.mean) == 1 else picture)
    return pixels


def _picture(image: Image.Image, preprocess: Preprocess, *, exact: bool) -> Image.Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as transform

    size = preprocess.size if exact else scaled_size((image.height, image.width), min(preprocess.size))
    picture: Image.Image = transform.resize(image, list(size), InterpolationMode(preprocess.interpolation))
    return picture


@dataclass(frozen=True)
class WholeImage:
    """Preparation of whole images, in the place of a ``Preprocess``, which cuts out the centre.

    Args:
        preprocess: of the network; its shorter side is that of the images.
        exact: images are brought to exactly its size, whatever their proportions.
    """

    preprocess: Preprocess
    exact: bool = False

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of values in 0..1."""
        return self.preprocess.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel."""
        return self.preprocess.std

    @classmethod
    def of(cls, model: torch.nn.Module, image_size: int | None = None) -> WholeImage:
        """As ``Preprocess.of``."""
        own = Preprocess.of(model, image_size)
        shorter = min(own.size)
        return cls(Preprocess((shorter, shorter), own.mean, own.std, own.interpolation))

    def view(self, image: Image.Image) -> Image.Image:
        """The image as the network sees it, still a picture."""
        return _picture(open_image(image), self.preprocess, exact=self.exact)

    def __call__(self, image: Image.Image) -> Tensor:
        """Normalised float32 (C, h, w)."""
        from torchvision.transforms.v2 import functional as transform

        whole = resized(open_image(image), self.preprocess, exact=self.exact)
        pixels = transform.to_dtype(whole, torch.float32, scale=True)
        normalised: Tensor = transform.normalize(pixels, list(self.mean), list(self.std))
        return normalised
