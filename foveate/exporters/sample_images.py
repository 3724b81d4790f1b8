"""Images to check and to calibrate with: of a data set, prepared as the model wants them, or random ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.data.detection import DetectionData, find_detection, open_detection
from foveate.data.detection.split import Objects
from foveate.data.opening import open_data
from foveate.data.segmentation import SegmentationData, find_segmentation, open_segmentation
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError
from foveate.exporters.options import ExportOptions
from foveate.images import Preprocess
from foveate.io import JsonObject
from foveate.whole_images import detection_size, resized, scaled_size

__all__ = [
    *("SampleSource", "Samples", "as_given", "full_batches", "open_map_samples", "open_samples", "random_samples"),
    "spread_evenly",
]


@dataclass(frozen=True)
class Samples:
    """Some images, twice.

    Args:
        normalised: (N, C, H, W) float32, as the network takes them.
        given: the same images as the file takes them, an array of the same length.
        labels: (N,) positions among ``classes``; None where the images have none.
        classes: of the data set.
        description: where they come from.
        targets: label maps (H, W) uint8, in their own size, of a segmentation network's images.
        objects: of a detector's images, in pixels of the file, with its height and width.
    """

    normalised: Tensor
    given: NDArray[np.generic]
    labels: Tensor | None
    classes: tuple[str, ...]
    description: str
    targets: tuple[Tensor, ...] = ()
    objects: tuple[tuple[Objects, tuple[int, int]], ...] = ()

    def __len__(self) -> int:
        return len(self.normalised)


def open_samples(
    data: str | os.PathLike[str] | ImageData, part: str, count: int, preprocess: Preprocess, options: ExportOptions
) -> Samples:
    """Images of one part of a data set, spread evenly over it.

    Args:
        data: what ``open_data`` takes.
        part: "train" or "val"; where it has no images, the other one.
        count: at most so many.
        preprocess: the model's own.
        options: whether the file takes pixels.

    Raises:
        FoveateError: the data has no images, or one of them cannot be read.
    """
    opened = data if isinstance(data, ImageData) else open_data(data)
    split: Split = getattr(opened, part)
    if not len(split):
        split = opened.val if part == "train" else opened.train
    if not len(split):
        raise FoveateError(f"{opened.name} has no images to export with: give a folder with images")
    chosen = spread_evenly(len(split), count)
    pictures = [split.load(index) for index in chosen]
    normalised = torch.stack([preprocess(picture) for picture in pictures])
    return Samples(
        normalised,
        _pixels(pictures, preprocess) if options.input == "uint8" else normalised.numpy(),
        torch.tensor([split.label(index) for index in chosen]),
        opened.classes,
        f"{len(chosen)} images of {opened.name}, {split.name}",
    )


def open_map_samples(
    data: SegmentationData, part: str, count: int, preprocess: Preprocess, options: ExportOptions
) -> Samples:
    """Images with label maps of one part of a data set, spread evenly over it: those of the size that most have.

    Args:
        data: both parts.
        part: "train" or "val".
        count: at most so many.
        preprocess: the model's own, or with the size that the file takes.
        options: whether the file takes pixels, and images of any size.

    Raises:
        FoveateError: an image or a label map cannot be read.
    """
    split = getattr(data, part)
    chosen, said, normalised, given = _alike(data, part, count, preprocess, options, scaled_size)
    targets = tuple(torch.from_numpy(np.array(split.target(index))) for index in chosen)
    return Samples(normalised, given, None, data.classes, said, targets)


def open_box_samples(
    data: DetectionData, part: str, count: int, preprocess: Preprocess, options: ExportOptions
) -> Samples:
    """Images with boxes of one part of a data set, as :func:`open_map_samples` gives those with label maps.

    Args:
        data: both parts.
        part: "train" or "val".
        count: at most so many.
        preprocess: the model's own, or with the size that the file takes.
        options: whether the file takes pixels, and images of any size.

    Raises:
        FoveateError: an image cannot be read.
    """
    split = getattr(data, part)
    chosen, said, normalised, given = _alike(data, part, count, preprocess, options, detection_size)
    objects = tuple((split.objects[index], split.sizes[index]) for index in chosen)
    return Samples(normalised, given, None, data.classes, said, objects=objects)


def _alike(
    data: SegmentationData | DetectionData,
    part: str,
    count: int,
    preprocess: Preprocess,
    options: ExportOptions,
    size_of: Callable[[tuple[int, int], int], tuple[int, int]],
) -> tuple[list[int], str, Tensor, NDArray[np.generic]]:
    """Which images have the size that most have, in words, normalised, and as the file takes them."""
    split, shorter = getattr(data, part), min(preprocess.size)
    sizes = [size_of(size, shorter) if options.size == "dynamic" else preprocess.size for size in split.sizes]
    usual = max(set(sizes), key=lambda size: (sizes.count(size), size))
    alike = [index for index, size in enumerate(sizes) if size == usual]
    chosen = [alike[at] for at in spread_evenly(len(alike), count)]
    whole = replace(preprocess, size=usual)
    pixels = torch.stack([resized(split.load(index), whole, exact=True) for index in chosen])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))
    normalised = (pixels.float() / 255 - mean) / std
    given = pixels.permute(0, 2, 3, 1).contiguous().numpy() if options.input == "uint8" else normalised.numpy()
    said = f"{len(chosen)} images of {data.name}, {split.name}, of {usual[0]}x{usual[1]} pixels"
    return chosen, said, normalised, given


class SampleSource:
    """A data set whose images are decoded once, however many files they are used for.

    Args:
        data: what ``open_data`` takes.

    Raises:
        FoveateError: it cannot be opened.
    """

    def __init__(self, data: str | os.PathLike[str] | ImageData | SegmentationData | DetectionData) -> None:
        if isinstance(data, str | os.PathLike):
            opened = open_segmentation if find_segmentation(data) else open_detection if find_detection(data) else None
            data = opened(data) if opened else open_data(data)
        self.data = data
        self._decoded: dict[tuple[object, ...], Samples] = {}

    def samples(self, part: str, count: int, preprocess: Preprocess, options: ExportOptions) -> Samples:
        """As :func:`open_samples`; what was asked for before is given again."""
        key = (part, count, preprocess, options.input, options.size)
        if key not in self._decoded:
            if isinstance(self.data, DetectionData):
                self._decoded[key] = open_box_samples(self.data, part, count, preprocess, options)
            elif isinstance(self.data, SegmentationData):
                self._decoded[key] = open_map_samples(self.data, part, count, preprocess, options)
            else:
                self._decoded[key] = open_samples(self.data, part, count, preprocess, options)
        return self._decoded[key]


def random_samples(count: int, preprocess: Preprocess, options: ExportOptions) -> Samples:
    """Random pixels, the same each time, where there is no data."""
    height, width = preprocess.size
    pixels = np.random.default_rng(0).integers(
        0, 256, (count, height, width, len(preprocess.mean)), dtype=np.uint8, endpoint=False
    )
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))
    normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255 - mean) / std
    given = pixels if options.input == "uint8" else normalised.contiguous().numpy()
    return Samples(normalised, given, None, (), f"{count} images of random pixels: no data was given")


def as_given(normalised: Tensor, metadata: JsonObject, preprocess: Preprocess) -> NDArray[np.generic]:
    """Normalised images as an exported file takes them: as they are, or the pixels that they were made of."""
    if metadata["input"]["type"] != "uint8":
        return normalised.float().contiguous().numpy()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))
    pixels = ((normalised * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def full_batches(images: NDArray[np.generic], batch: int) -> Iterator[tuple[NDArray[np.generic], int]]:
    """Images, so many at a time, and how many of these count: the last batch is filled up with its last image."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        count = len(part)
        if count < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
        yield np.ascontiguousarray(part), count


def spread_evenly(length: int, count: int) -> list[int]:
    """At most ``count`` positions of a sequence, at equal distances: classes that stand in order are all met."""
    count = min(length, count)
    return [index * length // count for index in range(count)]


def _pixels(pictures: list[Image.Image], preprocess: Preprocess) -> NDArray[np.generic]:
    views = [preprocess.view(picture) for picture in pictures]
    if len(preprocess.mean) == 1:
        return np.stack([np.asarray(view.convert("L"))[..., None] for view in views])
    return np.stack([np.asarray(view) for view in views])
