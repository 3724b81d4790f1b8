"""Batches of images with boxes and masks; whatever moves an image moves its boxes and masks with it.

The shorter side of an image is resized to the network's size s, but the longer one to 5/3 s at most, in torchvision's
proportions of 800 and 1333. The network fills the images of a batch up to the largest. In training with "standard", the
shorter side is drawn from 0.8 s to 1.2 s and half of the images are flipped. In an evaluation a batch holds images of
one size, so that no image depends on the others beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from foveate.data.detection import DetectionSplit
from foveate.data.detection.split import Objects
from foveate.dense import Detector
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.training.context import RunContext
from foveate.training.freeze import Frozen
from foveate.training.input.dense import DensePipeline, Stream, by_size
from foveate.training.input.loaders import Batches, normalised
from foveate.training.input.sampler import Batch, Where, mix, seed_draws
from foveate.training.metrics import Diverged
from foveate.whole_images import resized_for_boxes

__all__ = [
    "BoxLoader",
    "DetectionInputs",
    "DetectionPipeline",
    "Target",
    "check_finite",
]

_SCALES = 0.8, 1.2  # of the shorter side


@dataclass(frozen=True, eq=False)
class Target:
    """What is known of one image.

    Args:
        boxes: (n, 4) float32, in pixels of the input; without objects that are ignored, and where masks are wanted
            without those whose mask is not known.
        labels: (n,) int64.
        objects: all of them, in pixels of the image's file.
        size: height and width of the file.
        input_size: height and width of the input.
        masks: (n, h, w) uint8 of the input's size, 1 where a pixel belongs to the object; None where none are wanted.
    """

    boxes: Tensor
    labels: Tensor
    objects: Objects
    size: tuple[int, int]
    input_size: tuple[int, int]
    masks: Tensor | None = None


class DetectionInputs(NamedTuple):
    """Images of any sizes, uint8 or normalised, and what is known of them, which a detector needs to train."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]


class _Examples(Dataset[Any]):
    """Prepared pairs of pixels and targets.

    Args:
        split: the images.
        preprocess: of the model.
        kind: a name of ``Recipe.augmentation``; None: for an evaluation.
        seed: of the recipe.
        masks: whether masks are wanted.
    """

    def __init__(
        self, split: DetectionSplit, preprocess: Preprocess, kind: str | None, seed: int, *, masks: bool
    ) -> None:
        self.split, self.preprocess, self.kind, self.seed, self.masks = split, preprocess, kind, seed, masks

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: Where) -> tuple[Tensor, Target] | FoveateError:
        epoch, index = where
        try:
            image = self.split.load(index)
        except FoveateError as error:
            return error  # as a value: see loaders
        shorter, seed = self.preprocess.size[0], mix(self.seed, epoch, index)
        if self.kind == "standard":
            state = torch.get_rng_state()
            try:
                seed_draws(seed)
                low, high = (round(scale * shorter) for scale in _SCALES)
                shorter = int(torch.randint(low, high + 1, ()))
            finally:
                torch.set_rng_state(state)
        pixels = resized_for_boxes(image, self.preprocess, shorter)
        objects, size = self.split.objects[index], (image.height, image.width)
        input_size = int(pixels.shape[-2]), int(pixels.shape[-1])
        counted = ~objects.ignored & objects.masked if self.masks else ~objects.ignored
        boxes = torch.from_numpy(objects.boxes[counted])
        boxes = boxes * boxes.new_tensor([input_size[1] / size[1], input_size[0] / size[0]] * 2)
        masks = _masks(objects, counted, input_size) if self.masks and self.kind is not None else None
        if self.kind in ("flip", "standard") and seed & 1:
            pixels, boxes, masks = _flipped(pixels, boxes, masks)
        return pixels, Target(boxes, torch.from_numpy(objects.labels[counted]), objects, size, input_size, masks)


def _masks(objects: Objects, counted: npt.NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """(n, h, w) uint8, the masks of the objects that count."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as transform

    if objects.masks is None or not counted.any():
        return torch.zeros(0, *size, dtype=torch.uint8)
    masks = torch.from_numpy(objects.masks.subset(counted.nonzero()[0].tolist()).array())
    # What torchvision does with a tv_tensors.Mask moves it half a pixel beside its image, which this does not.
    resized: Tensor = transform.resize(masks, list(size), InterpolationMode.NEAREST_EXACT)
    return resized


def _flipped(pixels: Tensor, boxes: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Left to right, the boxes and masks with the image."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as transform

    size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    moved = [tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)]
    moved += [] if masks is None else [tv_tensors.Mask(masks)]
    flipped = [transform.horizontal_flip(one).as_subclass(Tensor) for one in moved]
    return transform.horizontal_flip(pixels), flipped[0], None if masks is None else flipped[1]


def _collate(items: list[tuple[Tensor, Target]]) -> tuple[DetectionInputs, list[Target]]:
    pixels, targets = (list(of) for of in zip(*items, strict=True))
    known = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
    for one, target in zip(known, targets, strict=True):
        if target.masks is not None:
            one["masks"] = target.masks
    return DetectionInputs(pixels, known), targets


class BoxLoader:
    """Batches of one split, and how the model takes them.

    Args:
        split: the images.
        preprocess: of the model.
        kind: a name of ``Recipe.augmentation``; None: for an evaluation.
        seed: of the recipe.
        workers: processes that load images.
        masks: whether the model has masks.
    """

    trunk: Frozen | None = None

    def __init__(
        self,
        split: DetectionSplit,
        preprocess: Preprocess,
        kind: str | None = None,
        seed: int = 0,
        workers: int = 0,
        *,
        masks: bool = False,
    ) -> None:
        self.split, self.preprocess, self.masks, self._checked = split, preprocess, masks, False
        self.batches: Batches = Stream(_Examples(split, preprocess, kind, seed, masks=masks), workers, _collate)

    @property
    def count(self) -> int:
        """Images in the split."""
        return len(self.split)

    def whole(self, batch_size: int, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """All images in order, or every ``processes``-th from number ``rank`` on; those of a batch have one size."""
        self._checked = False
        return self.batches(by_size(self.split.sizes, batch_size, rank, processes))

    def prepared(self, inputs: Any, device: torch.device) -> Any:
        """Normalised images on the device, with their targets: ``DetectionInputs``."""
        images = [normalised(image[None], self.preprocess, device)[0] for image in inputs.images]
        targets = [{name: value.to(device) for name, value in target.items()} for target in inputs.targets]
        return DetectionInputs(images, targets)

    def scores(self, model: nn.Module, inputs: Any) -> Any:
        """In training mode the losses by name, otherwise the objects of each image, masks each of its box alone."""
        if model.training:
            return model(inputs.images, inputs.targets)
        return model(inputs.images, whole_masks=False) if self.masks else model(inputs.images)

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """What the network gives for a batch; of an evaluation's first, its weights are looked at, too."""
        if not self._checked:
            check_finite(model)
            self._checked = True
        device, dtype = device_and_dtype(model)
        images, targets = self.prepared(inputs, device)
        return self.scores(model, DetectionInputs([image.to(dtype) for image in images], targets))


def check_finite(model: nn.Module) -> None:
    """Look at a detector's weights: a score that is NaN is above no threshold, and nothing would say why it is missing.

    Raises:
        Diverged: a weight or a running statistic is NaN or infinite.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Diverged(
                f"{name} of the model is NaN or infinite, so it cannot tell what it sees: lower the learning rate"
            )


class DetectionPipeline(DensePipeline[BoxLoader]):
    """The batches of both splits, images with boxes, and for a model with masks with masks.

    Args:
        model: as in ``DensePipeline``.
        data: as there.
        preprocess: as there.
        context: as there.
        head: as there.
    """

    def __init__(
        self, model: nn.Module, data: Any, preprocess: Preprocess, context: RunContext, head: tuple[str, ...]
    ) -> None:
        super().__init__(model, data, preprocess, context, head)
        self.masks = isinstance(model, Detector) and model.with_masks

    def _loader(self, split: DetectionSplit, kind: str | None) -> BoxLoader:
        return BoxLoader(split, self.preprocess, kind, self.recipe.seed, self.recipe.workers, masks=self.masks)
