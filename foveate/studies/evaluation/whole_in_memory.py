"""Whole images in memory with what is known of each, for audits of networks that look at pixels or at boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.data.detection import DetectionData, DetectionSplit
from foveate.data.detection.split import Objects
from foveate.data.division import sample
from foveate.data.segmentation import SegmentationData, SegmentationSplit
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.networks.class_names import stored_names
from foveate.training.input.loaders import normalised
from foveate.whole_images import WholeImage, resized, resized_for_boxes

__all__ = ["KnownObjects", "LoadedWhole", "load_boxes", "load_maps"]


class KnownObjects(NamedTuple):
    """What is there in one image.

    Args:
        objects: in pixels of the image's file.
        size: height and width of the file.
    """

    objects: Objects
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class LoadedWhole:
    """Images in memory, those of one size beside each other, in random order.

    Args:
        name: of the data set.
        images: uint8 pixels (C, h, w) of each, as the network sees them.
        labels: what is known of each: a label map (H, W) uint8 in its own size, or ``KnownObjects``.
        preprocess: of the network.
    """

    name: str
    images: Sequence[Tensor]
    labels: Sequence[Any]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, list[Any]]]:
        """Normalised images of one size and their labels, always in the same order; never one image alone."""
        start = 0
        while start < len(self):
            shape = self.images[start].shape
            alike = next((n for n in range(start, len(self)) if self.images[n].shape != shape), len(self)) - start
            count = alike if alike <= size + 1 else min(size, alike - 2)
            part = slice(start, start + count)
            pixels = torch.stack(list(self.images[part]))
            yield normalised(pixels, self.preprocess, device), list(self.labels[part])
            start += count


def load_maps(
    data: SegmentationData | SegmentationSplit,
    model: torch.nn.Module,
    *,
    limit: int | None,
    image_size: int | None,
    seed: int,
) -> LoadedWhole:
    """Read images with label maps into memory; those that are alone with their size are left out.

    Args:
        data: its validation part is read; or a part.
        model: says how images are prepared.
        limit: at most so many images.
        image_size: their shorter side; without it the model's own.
        seed: of the choice and the order.

    Raises:
        FoveateError: the model has other classes, no two images have one size, or a file cannot be read.
    """
    part = data if isinstance(data, SegmentationSplit) else data.val

    def label_map(index: int) -> Tensor:
        return torch.from_numpy(np.array(part.target(index)))

    return _loaded(data.name, part, model, limit, image_size, seed, resized, label_map)


def load_boxes(
    data: DetectionData | DetectionSplit,
    model: torch.nn.Module,
    *,
    limit: int | None,
    image_size: int | None,
    seed: int,
) -> LoadedWhole:
    """The same of images with boxes.

    Raises:
        FoveateError: as ``load_maps``, or no image has an object that counts.
    """
    part = data if isinstance(data, DetectionSplit) else data.val

    def known(index: int) -> KnownObjects:
        return KnownObjects(part.objects[index], part.sizes[index])

    loaded = _loaded(data.name, part, model, limit, image_size, seed, resized_for_boxes, known)
    if all(one.objects.ignored.all() for one in loaded.labels):
        raise FoveateError("no image to audit on has an object that counts: mAP is of objects")
    return loaded


def _loaded(
    name: str,
    part: SegmentationSplit | DetectionSplit,
    model: torch.nn.Module,
    limit: int | None,
    image_size: int | None,
    seed: int,
    prepare: Callable[[Image.Image, Preprocess], Tensor],
    label: Callable[[int], Any],
) -> LoadedWhole:
    if limit is not None and limit < 1:
        raise FoveateError(f"limit {limit}: must be at least 1")
    names = stored_names(model, len(part.classes))
    if names and names != part.classes:
        raise FoveateError("the model's classes are not the data's in the same order: audit it on data of its classes")
    chosen = list(range(len(part)))
    if limit is not None and limit < len(part):
        chosen = sample(part.names, [0] * len(part), limit, seed)
    preprocess = WholeImage.of(model, image_size).preprocess
    order = [chosen[n] for n in torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()]
    images = {index: prepare(part.load(index), preprocess) for index in order}
    shapes = [tuple(images[index].shape) for index in order]
    kept = [index for index, shape in zip(order, shapes, strict=True) if shapes.count(shape) > 1]
    if not kept:
        raise FoveateError("an audit exchanges maps between images of one size, and no two of these have one")
    kept.sort(key=lambda index: shapes.index(tuple(images[index].shape)))  # a stable sort: the order stays random
    left = len(order) - len(kept)
    name += f", without {left} images alone with their size" if left else ""
    return LoadedWhole(name, [images[index] for index in kept], [label(index) for index in kept], preprocess)
