"""Images and labels in memory, for studies that pass over the same images many times."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.data import ImageData, open_data
from foveate.data.detection import DetectionData, DetectionSplit
from foveate.data.division import sample
from foveate.data.split import Split
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.networks.class_names import class_positions, to_outputs
from foveate.preserve import preserve_state
from foveate.scores import check_logits, class_numbers
from foveate.training.input.loaders import Source
from foveate.training.input.sampler import of_whole

__all__ = ["Data", "LoadedImages", "SharedImages", "load_images", "outputs_of"]

Data = str | os.PathLike[str] | ImageData | Split | Iterable[tuple[Tensor, Tensor]]
_AT_ONCE = 64  # images decoded in one go


@dataclass(frozen=True, eq=False, repr=False)
class SharedImages(ImageData):
    """A data set for several networks that look at the same images: what was decoded for one is kept for the next.

    Args:
        prepared: pixels, labels and positions by how the images are prepared and chosen.
    """

    prepared: dict[tuple[object, ...], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: ImageData) -> SharedImages:
        """The same data set."""
        return cls(**{each.name: getattr(data, each.name) for each in fields(ImageData)})


@dataclass(frozen=True, eq=False)
class LoadedImages:
    """Images in an order of their own, so that neighbours are not of one class.

    Args:
        name: of the data set.
        inputs: (N, C, H, W), uint8 pixels, or normalised floats as they were given.
        labels: (N,) int64, positions among the model's classes.
        source: normalises pixels; None for floats.
        positions: (N,) where each image stands in the data as given.
        classes: of the data; () where they are not known.
    """

    name: str
    inputs: Tensor
    labels: Tensor
    source: Source | None
    positions: Tensor
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images and labels, always in the same order; no batch of one image unless there is only one."""
        starts = list(range(0, len(self), size))
        if len(starts) > 1 and len(self) - starts[-1] == 1:
            starts.pop()
        for start, stop in zip(starts, [*starts[1:], len(self)], strict=True):
            inputs = self.inputs[start:stop]
            inputs = self.source.normalised(inputs, device) if self.source else inputs.to(device)
            yield inputs, self.labels[start:stop]


def load_images(
    data: Data, model: nn.Module, *, limit: int | None, image_size: int | None = None, seed: int = 0
) -> LoadedImages:
    """Read images into memory.

    Args:
        data: what ``open_data`` takes (its validation part is read), a part of a data set, or batches of normalised
            images (B, C, H, W) and labels (B,).
        model: says how images are prepared.
        limit: at most so many images, drawn in proportion to the classes; of batches the first.
        image_size: side of the images in pixels; without it the model's own.
        seed: of the draw and the order.

    Raises:
        FoveateError: the data cannot be read, holds no image, has a class that the model does not know, or does not fit
            the limit.
    """
    if limit is not None and limit < 1:
        raise FoveateError(f"limit {limit}: must be at least 1")
    if isinstance(data, str | os.PathLike | DetectionData | DetectionSplit):  # of these two it says what they are
        data = open_data(data)
    name = data.name if isinstance(data, ImageData | Split) else "images"
    part = data.val if isinstance(data, ImageData) else data
    if isinstance(part, Split):
        kept = data.prepared if isinstance(data, SharedImages) else {}
        preprocess = Preprocess.of(model, image_size)
        asked = (preprocess, limit, seed)
        if asked not in kept:
            kept[asked] = _of_split(name, part, preprocess, limit, seed)
        inputs, labels, positions = kept[asked]
        found = LoadedImages(name, inputs, labels, Source(part, "", preprocess), positions, part.classes)
    else:
        if image_size is not None:
            raise FoveateError("image_size= is for image files: batches are taken as they are; leave it out")
        found = _of_batches(name, part, limit)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    labels = to_outputs(found.labels, outputs_of(model, found))
    return replace(found, inputs=found.inputs[order], labels=labels[order], positions=found.positions[order])


def _of_split(
    name: str, part: Split, preprocess: Preprocess, limit: int | None, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, labels, and where each image stands in the part."""
    chosen = list(range(len(part)))
    if limit is not None and limit < len(part):
        chosen = sample(part.names, part.labels, limit, seed)
        part = part.subset(chosen)
    if not len(part):
        raise FoveateError(f"{name} has no image to look at")
    batches = list(Source(part, "", preprocess).stream()(of_whole(len(part), _AT_ONCE)))
    inputs, labels = (torch.cat(of) for of in zip(*batches, strict=True))
    return inputs, labels, torch.tensor(chosen)


def outputs_of(model: nn.Module, loaded: LoadedImages) -> tuple[int, ...] | None:
    """Where the data's classes stand among the model's, as ``class_positions``; one image shows how many these are.

    Raises:
        FoveateError: a class of the data is not a class of the model, or the model gives no scores of classes.
    """
    if not loaded.classes or loaded.source is None:
        return None
    device, dtype = device_and_dtype(model)
    with preserve_state(model, evaluation=True, no_grad=True):
        scores = check_logits(model(loaded.source.normalised(loaded.inputs[:1], device).to(dtype)))
    return class_positions(model, loaded.classes, scores.shape[1])


def _of_batches(name: str, batches: Any, limit: int | None) -> LoadedImages:
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
            raise FoveateError("data is a folder, a data set, or batches (images, labels) of tensors")
        pixels, right = batch[0], torch.as_tensor(batch[1])
        if pixels.ndim != 4 or not pixels.is_floating_point() or right.shape[:1] != pixels.shape[:1]:
            raise FoveateError(
                f"a batch has images {tuple(pixels.shape)} of {pixels.dtype} and labels {tuple(right.shape)}: "
                "give normalised float (B, C, H, W) and (B,)"
            )
        images.append(pixels.detach().cpu())
        labels.append(class_numbers(right).cpu())
        if limit is not None and sum(map(len, labels)) >= limit:
            break
    if not images:
        raise FoveateError("the data holds no batch of images")
    inputs = torch.cat(images)[:limit]
    return LoadedImages(name, inputs, torch.cat(labels)[:limit], None, torch.arange(len(inputs)))
