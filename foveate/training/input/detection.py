"""Batches of images with boxes; whatever moves an image moves its boxes with it.

The shorter side of an image is resized to the network's size s, but the longer one to 5/3 s at most, in torchvision's
proportions of 800 and 1333. The network fills the images of a batch up to the largest. In training with "standard", the
shorter side is drawn from 0.8 s to 1.2 s and half of the images are flipped. In an evaluation a batch holds images of
one size, so that no image depends on the others beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from foveate.data.detection import DetectionSplit
from foveate.data.detection.split import Objects
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
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
        boxes: (n, 4) float32, in pixels of the input; without objects that are ignored.
        labels: (n,) int64.
        objects: all of them, in pixels of the image's file.
        size: height and width of the file.
        input_size: height and width of the input.
    """

    boxes: Tensor
    labels: Tensor
    objects: Objects
    size: tuple[int, int]
    input_size: tuple[int, int]


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
    """

    def __init__(self, split: DetectionSplit, preprocess: Preprocess, kind: str | None, seed: int) -> None:
        self.split, self.preprocess, self.kind, self.seed = split, preprocess, kind, seed

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
        boxes = self._boxes(objects, size, pixels)
        if self.kind in ("flip", "standard") and seed & 1:
            pixels, boxes = _flipped(pixels, boxes)
        labels = torch.from_numpy(objects.labels[~objects.ignored])
        return pixels, Target(boxes, labels, objects, size, (pixels.shape[-2], pixels.shape[-1]))

    @staticmethod
    def _boxes(objects: Objects, size: tuple[int, int], pixels: Tensor) -> Tensor:
        boxes = torch.from_numpy(objects.boxes[~objects.ignored])
        height, width = pixels.shape[-2:]
        return boxes * boxes.new_tensor([width / size[1], height / size[0]] * 2)


def _flipped(pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Left to right, the boxes with the image."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as transform

    size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    placed = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    flipped: Tensor = transform.horizontal_flip(placed)
    return transform.horizontal_flip(pixels), flipped.as_subclass(Tensor)


def _collate(items: list[tuple[Tensor, Target]]) -> tuple[DetectionInputs, list[Target]]:
    pixels, targets = (list(of) for of in zip(*items, strict=True))
    known = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
    return DetectionInputs(pixels, known), targets


class BoxLoader:
    """Batches of one split, and how the model takes them.

    Args:
        split: the images.
        preprocess: of the model.
        kind: a name of ``Recipe.augmentation``; None: for an evaluation.
        seed: of the recipe.
        workers: processes that load images.
    """

    trunk: Frozen | None = None

    def __init__(
        self, split: DetectionSplit, preprocess: Preprocess, kind: str | None = None, seed: int = 0, workers: int = 0
    ) -> None:
        self.split, self.preprocess, self._checked = split, preprocess, False
        self.batches: Batches = Stream(_Examples(split, preprocess, kind, seed), workers, _collate)

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
        """In training mode the losses by name, otherwise the objects of each image."""
        return model(inputs.images, inputs.targets) if model.training else model(inputs.images)

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """What the network gives for a batch; of an evaluation's first, its weights are looked at, too."""
        if not self._checked:
            check_finite(model)
            self._checked = True
        return self.scores(model, self.prepared(inputs, device_and_dtype(model)[0]))


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
    """The batches of both splits, images with boxes."""

    def _loader(self, split: DetectionSplit, kind: str | None) -> BoxLoader:
        return BoxLoader(split, self.preprocess, kind, self.recipe.seed, self.recipe.workers)
