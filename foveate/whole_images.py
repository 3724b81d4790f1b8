"""How an image is prepared whole, for networks that look at pixels: its shorter side at a length, nothing cut off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from foveate.images import Preprocess, open_image

__all__ = ["WholeImage", "detection_size", "resized", "resized_for_boxes", "scaled_size", "window_starts"]

_OVERLAP = 1 / 3  # of neighbouring windows, as in mmsegmentation's usual settings
_LONGEST = 1333 / 800  # of the longer side of an image for a detector, for one of the shorter


def scaled_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Height and width with the shorter side at a length, in the same proportions."""
    height, width = size
    scale = shorter / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def detection_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Height and width of an image as a detector sees it, in the same proportions.

    The longer side is 5/3 of ``shorter`` at most, in torchvision's proportions of 800 and 1333.

    Args:
        size: height and width of the file.
        shorter: side of the network.
    """
    scale = min(shorter / min(size), _LONGEST * shorter / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def window_starts(length: int, window: int) -> list[int]:
    """Where windows begin: a third of each lies in its neighbour, and the last one ends with the image.

    Args:
        length: of the image.
        window: side of a window, at most ``length``.
    """
    step = max(1, round(window * (1 - _OVERLAP)))
    return [*range(0, length - window, step), length - window]


def resized_for_boxes(image: Image.Image, preprocess: Preprocess, shorter: int | None = None) -> Tensor:
    """An RGB image as a detector sees it: uint8 (C, h, w)."""
    size = detection_size((image.height, image.width), shorter or preprocess.size[0])
    return _pixels(_at_size(image, preprocess, size), preprocess)


def resized(image: Image.Image, preprocess: Preprocess, *, exact: bool = False) -> Tensor:
    """An RGB image as the network sees it: uint8 (C, h, w), its shorter side at the network's size, or exactly so."""
    size = preprocess.size if exact else scaled_size((image.height, image.width), min(preprocess.size))
    return _pixels(_at_size(image, preprocess, size), preprocess)


def _pixels(picture: Image.Image, preprocess: Preprocess) -> Tensor:
    from torchvision.transforms.v2 import functional as transform

    pixels: Tensor = transform.pil_to_tensor(picture.convert("L") if len(preprocess.mean) == 1 else picture)
    return pixels


def _at_size(image: Image.Image, preprocess: Preprocess, size: tuple[int, int]) -> Image.Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as transform

    picture: Image.Image = transform.resize(image, list(size), InterpolationMode(preprocess.interpolation))
    return picture


@dataclass(frozen=True)
class WholeImage:
    """Preparation of whole images, in the place of a ``Preprocess``, which cuts out the centre.

    Args:
        preprocess: of the network; its shorter side is that of the images.
        exact: images are brought to exactly its size, whatever their proportions.
        for_boxes: the longer side is limited, as for detectors.
    """

    preprocess: Preprocess
    exact: bool = False
    for_boxes: bool = False

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of values in 0..1."""
        return self.preprocess.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel."""
        return self.preprocess.std

    @classmethod
    def of(cls, model: torch.nn.Module, image_size: int | None = None, *, for_boxes: bool = False) -> WholeImage:
        """As ``Preprocess.of``."""
        own = Preprocess.of(model, image_size)
        shorter = min(own.size)
        square = Preprocess((shorter, shorter), own.mean, own.std, own.interpolation)
        return cls(square, for_boxes=for_boxes)

    def view(self, image: Image.Image) -> Image.Image:
        """The image as the network sees it, still a picture."""
        opened = open_image(image)
        return _at_size(opened, self.preprocess, self._size((opened.height, opened.width)))

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.exact:
            return self.preprocess.size
        shorter = min(self.preprocess.size)
        return detection_size(size, shorter) if self.for_boxes else scaled_size(size, shorter)

    def __call__(self, image: Image.Image) -> Tensor:
        """Normalised float32 (C, h, w)."""
        from torchvision.transforms.v2 import functional as transform

        pixels = transform.to_dtype(_pixels(self.view(image), self.preprocess), torch.float32, scale=True)
        normalised: Tensor = transform.normalize(pixels, list(self.mean), list(self.std))
        return normalised
