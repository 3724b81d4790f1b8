"""Batches of random crops of decoded pictures, made by this process in as many threads as a step has.

The pixels are those of torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip`` on the whole picture, bit for
bit, and so are the draws. What is drawn is drawn first, for torch's random numbers belong to all threads; Pillow
resizes outside Python's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from foveate.images import Preprocess
from foveate.training.input.image_cache import Decoded
from foveate.training.input.sampler import Batch, Where, mix, seed_draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveate.data.split import Split

__all__ = ["RandomCrops"]


@dataclass(frozen=True)
class _Crop:
    index: int
    top: int
    left: int
    height: int
    width: int
    flipped: bool


class RandomCrops:
    """Batches in an order, with the augmentation "standard".

    Args:
        split: the images.
        preprocess: of the model.
        seed: of the recipe.
        decoded: the pictures.
    """

    def __init__(self, split: Split, preprocess: Preprocess, seed: int, decoded: Decoded) -> None:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import pil_modes_mapping
        from torchvision.transforms.v2 import RandomResizedCrop

        self.split, self.preprocess, self.seed, self.decoded = split, preprocess, seed, decoded
        self.filter = pil_modes_mapping[InterpolationMode(preprocess.interpolation)]
        self.draw_crop = RandomResizedCrop(preprocess.size).make_params

    def __call__(self, order: Iterable[list[Where]]) -> Iterator[Batch]:
        """``order`` iterates over lists of (epoch, index)."""
        with ThreadPoolExecutor() as pool:
            for where in order:
                crops, threads = self.draw(where), torch.get_num_threads()
                pixels = torch.empty((len(crops), len(self.preprocess.mean), *self.preprocess.size), dtype=torch.uint8)
                places = pixels.numpy()
                parts = [(crops[k::threads], places[k::threads]) for k in range(threads)]
                others = [pool.submit(self.make, *part) for part in parts[1:] if part[0]]
                self.make(*parts[0])
                for other in others:
                    other.result()
                yield pixels, torch.tensor([self.split.label(index) for _, index in where])

    def draw(self, where: list[Where]) -> list[_Crop]:
        """What is cut out of each image, and whether it is flipped; the global random numbers are left as found."""
        crops, state = [], torch.get_rng_state()
        try:
            for epoch, index in where:
                seed_draws(mix(self.seed, epoch, index))
                size = torch.empty((3, *self.decoded.sizes[index]), device="meta")
                crops.append(_Crop(index, **self.draw_crop([size]), flipped=not torch.rand(1) >= 0.5))
        finally:
            torch.set_rng_state(state)
        return crops

    def make(self, crops: list[_Crop], pixels: NDArray[np.uint8]) -> None:
        """Write crops (N) into pixels (N, C, H, W)."""
        height, width = self.preprocess.size
        grey = len(self.preprocess.mean) == 1
        for crop, place in zip(crops, pixels, strict=True):
            part = self.decoded.array(crop.index)[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            image = Image.fromarray(np.ascontiguousarray(part)).resize((width, height), self.filter)
            found = np.asarray(image.convert("L") if grey else image).reshape(height, width, -1)
            place[:] = (found[:, ::-1] if crop.flipped else found).transpose(2, 0, 1)
