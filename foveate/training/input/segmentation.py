"""Batches of images with label maps; whatever moves an image moves its label map with it.

Training: the shorter side of an image is resized to the network's size s. Without a random crop all of it is shown, and
is filled up to the largest such image with the mean colour, where the label map is ignored. With one, the shorter side
is drawn from s/2 to 2s, and s x s pixels are cut out. Evaluation: the shorter side is s, nothing is cut off or filled
up, and a batch holds images of one size; their label maps keep their own size, and the scores are brought to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from foveate.data.segmentation import IGNORE, SegmentationData, SegmentationSplit
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.training.context import RunContext
from foveate.training.freeze import Frozen
from foveate.training.input.dense import DensePipeline, Stream, by_size
from foveate.training.input.loaders import Batches, normalised
from foveate.training.input.sampler import Batch, Where, mix, seed_draws
from foveate.whole_images import resized, scaled_size

__all__ = ["MapLoader", "SegmentationPipeline"]

_SCALES = (0.5, 2.0)  # of the shorter side, where a random part is cut out


class _Pairs(Dataset[Any]):
    """Prepared pairs of pixels and classes.

    Args:
        split: the images.
        preprocess: of the model.
        kind: a name of ``Recipe.augmentation``; None: for an evaluation.
        seed: of the recipe.
    """

    def __init__(self, split: SegmentationSplit, preprocess: Preprocess, kind: str | None, seed: int) -> None:
        self.split, self.preprocess, self.kind, self.seed = split, preprocess, kind, seed
        sizes = [scaled_size(size, preprocess.size[0]) for size in split.sizes]
        self.canvas = max(height for height, _ in sizes), max(width for _, width in sizes)
        self.mean = [round(255 * mean) for mean in preprocess.mean]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: Where) -> tuple[Tensor, Tensor] | FoveateError:
        epoch, index = where
        try:
            image, classes = self.split.load(index), self.split.target(index)
        except FoveateError as error:
            return error  # as a value: see loaders
        seed = mix(self.seed, epoch, index)
        if self.kind is None:
            return resized(image, self.preprocess), torch.from_numpy(np.array(classes))
        if self.kind == "standard":
            state = torch.get_rng_state()
            try:
                seed_draws(seed)
                return self._cropped(image, classes)
            finally:
                torch.set_rng_state(state)
        pixels, target = self._whole(image, classes)
        flip = self.kind == "flip" and bool(seed & 1)
        return (pixels.flip(-1), target.flip(-1)) if flip else (pixels, target)

    def _whole(self, image: Image.Image, classes: Image.Image) -> tuple[Tensor, Tensor]:
        """All of an image, filled up to the canvas."""
        pixels = resized(image, self.preprocess)
        target = _at_size(classes, pixels)
        height, width = pixels.shape[-2:]
        filled = torch.tensor(self.mean, dtype=torch.uint8).view(-1, 1, 1).repeat(1, *self.canvas)
        ignored = torch.full(self.canvas, IGNORE, dtype=torch.uint8)
        filled[:, :height, :width] = pixels
        ignored[:height, :width] = target
        return filled, ignored

    def _cropped(self, image: Image.Image, classes: Image.Image) -> tuple[Tensor, Tensor]:
        """A random part at a random scale."""
        from torchvision import tv_tensors
        from torchvision.transforms import InterpolationMode, v2
        from torchvision.transforms.v2 import functional as transform

        shorter = self.preprocess.size[0]
        least, most = (round(scale * shorter) for scale in _SCALES)
        grey = image.convert("L") if len(self.mean) == 1 else image
        resize = v2.RandomResize(least, most + 1, InterpolationMode(self.preprocess.interpolation))
        enlarged = resize(transform.pil_to_tensor(grey))
        pair = tv_tensors.Image(enlarged), tv_tensors.Mask(_at_size(classes, enlarged))
        fill = {tv_tensors.Image: self.mean, tv_tensors.Mask: IGNORE}
        steps = v2.Compose(
            [
                v2.RandomCrop((shorter, shorter), pad_if_needed=True, fill=fill),
                v2.RandomHorizontalFlip(),
            ]
        )
        pixels, target = steps(*pair)
        return pixels.as_subclass(Tensor), target.as_subclass(Tensor)


def _at_size(classes: Image.Image, pixels: Tensor) -> Tensor:
    """The class of each pixel, (h, w) uint8, at the size of an image (C, h, w)."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as transform

    given = torch.from_numpy(np.array(classes))[None]
    # What torchvision does with a tv_tensors.Mask moves it half a pixel beside its image, which this does not.
    found: Tensor = transform.resize(given, list(pixels.shape[-2:]), InterpolationMode.NEAREST_EXACT)
    return found[0]


def _collate(items: list[tuple[Tensor, Tensor]]) -> Batch:
    pixels, targets = zip(*items, strict=True)
    return torch.stack(pixels), torch.stack(targets)


class MapLoader:
    """Batches of one split, and how the model takes them.

    Args:
        split: the images.
        preprocess: of the model.
        kind: a name of ``Recipe.augmentation``; None: for an evaluation.
        seed: of the recipe.
        workers: processes that load images.
        channels_last: the memory format of the model.
    """

    trunk: Frozen | None = None

    def __init__(
        self,
        split: SegmentationSplit,
        preprocess: Preprocess,
        kind: str | None = None,
        seed: int = 0,
        workers: int = 0,
        *,
        channels_last: bool = False,
    ) -> None:
        self.split, self.preprocess, self.channels_last = split, preprocess, channels_last
        self.batches: Batches = Stream(_Pairs(split, preprocess, kind, seed), workers, _collate)

    @property
    def count(self) -> int:
        """Images in the split."""
        return len(self.split)

    def whole(self, batch_size: int, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """All images in order, or every ``processes``-th from number ``rank`` on; those of a batch have one size."""
        return self.batches(by_size(self.split.sizes, batch_size, rank, processes))

    def prepared(self, inputs: Tensor, device: torch.device) -> Tensor:
        """Normalised pixels on the device."""
        return normalised(inputs, self.preprocess, device)

    def scores(self, model: nn.Module, inputs: Tensor) -> Any:
        """What the network gives for a prepared batch."""
        return model(inputs.contiguous(memory_format=torch.channels_last) if self.channels_last else inputs)

    def forward(self, model: nn.Module, inputs: Tensor) -> Any:
        """What the network gives for a batch."""
        return self.scores(model, self.prepared(inputs, device_and_dtype(model)[0]))


class SegmentationPipeline(DensePipeline[MapLoader]):
    """The batches of both splits, images with label maps."""

    def __init__(
        self,
        model: nn.Module,
        data: SegmentationData,
        preprocess: Preprocess,
        context: RunContext,
        head: tuple[str, ...],
    ) -> None:
        super().__init__(model, data, preprocess, context, head)
        if self.recipe.cache and self.recipe.freeze:
            context.bar.line(
                "features of what is frozen are not cached: a segmenter reads several of its maps, in the size of each "
                "image; it runs in each step, without gradients"
            )

    def _loader(self, split: SegmentationSplit, kind: str | None) -> MapLoader:
        recipe = self.recipe
        options = {"channels_last": recipe.channels_last}
        return MapLoader(split, self.preprocess, kind, recipe.seed, recipe.workers, **options)
