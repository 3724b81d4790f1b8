"""Detection networks: the objects in images, and how good they are where the objects are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from foveate.data.detection import DetectionData, DetectionSplit
from foveate.data.detection.masks import InstanceMasks, require_masks
from foveate.dense import Detector
from foveate.errors import FoveateError
from foveate.exporters.opened import ExportedDetector
from foveate.model_info import device_and_dtype
from foveate.networks.class_names import stored_names
from foveate.prediction.detection_result import Detections, ImageDetections
from foveate.prediction.inputs import Images, Inputs, Item
from foveate.preserve import preserve_state
from foveate.progress import ProgressBar
from foveate.training.input.detection import BoxLoader, check_finite
from foveate.training.input.loaders import normalised
from foveate.training.input.sampler import images_in
from foveate.training.tasks.collected_objects import (
    MOST,
    collect_objects,
    in_pixels_of_the_file,
    masks_of_the_file,
)
from foveate.training.tasks.detection_metrics import DetectionEvaluation, measure_objects
from foveate.whole_images import WholeImage, resized, resized_for_boxes

__all__ = ["evaluate_detector", "predict_objects"]


def predict_objects(
    network: Detector | ExportedDetector,
    images: Images,
    *,
    image_size: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Detections:
    """Find the objects in images. Nothing is computed before the result is read.

    Args:
        network: used in evaluation mode on the device where it is; or a file that ``export`` wrote.
        images: as ``predict`` takes them.
        image_size: the shorter side of what the network sees, in pixels, instead of the model's own. Boxes are in
            pixels of the image.
        strict: stop at the first image that cannot be read. Without it such images are listed in ``bad``.
        progress: show a bar.

    Returns:
        The objects, in the order of the images: iterate, or ``.write("boxes.json")``.

    Raises:
        FoveateError: there is no such image.
        Diverged: a weight is NaN or infinite, which is noticed when the result is read.
    """
    inputs, finder = Inputs(images), _finder(network, image_size)
    bad: list[tuple[str, str]] = []

    def stream() -> Iterator[ImageDetections]:
        finder.check()
        with ProgressBar(progress) as bar:
            task = bar.task("predicting", inputs.count() if progress else None)
            for item in inputs:
                try:
                    found = _objects(finder, item)
                except FoveateError as error:
                    if strict:
                        raise
                    bad.append((item.name, str(error)))
                else:
                    yield found
                bar.advance(task, 1)

    return Detections(stream(), bad, finder.labels)


def _objects(finder: _Finder, item: Item) -> ImageDetections:
    image = item.load()
    rows, masks = finder.find(image)
    if not rows.isfinite().all():
        raise FoveateError("the model's boxes or scores are NaN or infinite")
    boxes, scores, classes = rows[:, :4], rows[:, 4], rows[:, 5].long()
    return ImageDetections(
        item.name, boxes, scores, classes, finder.labels, (image.height, image.width), item.path, item, masks
    )


class Found(NamedTuple):
    """What is in an image.

    Args:
        rows: (n, 6), as ``in_pixels_of_the_file``.
        masks: of each, in the size of the image; None where the network has none.
    """

    rows: Tensor
    masks: InstanceMasks | None = None


class _Finder(Protocol):
    """What finds objects: a network, or a file.

    Attributes:
        labels: a name for each class.
    """

    labels: tuple[str, ...]

    def check(self) -> None:
        """Make sure that it can find anything.

        Raises:
            Diverged: a weight is NaN or infinite.
            FoveateError: a package is not installed.
        """

    def find(self, image: Image.Image) -> Found:
        """What is in an image."""


class _NetworkFinder:
    def __init__(self, network: Detector, image_size: int | None) -> None:
        self.network, self.preprocess = network, WholeImage.of(network, image_size).preprocess
        self.labels = stored_names(network, network.num_classes) or tuple(map(str, range(network.num_classes)))

    def check(self) -> None:
        check_finite(self.network)
        if self.network.with_masks:
            require_masks()

    def find(self, image: Image.Image) -> Found:
        device, dtype = device_and_dtype(self.network)
        with preserve_state(self.network, evaluation=True, no_grad=True):
            pixels = normalised(resized_for_boxes(image, self.preprocess)[None], self.preprocess, device).to(dtype)
            one = self.network([pixels[0]], whole_masks=False)[0]
            rows = _rows(one, image, pixels)
            if not self.network.with_masks:
                return Found(rows)
            sizes = (image.height, image.width), (pixels.shape[-2], pixels.shape[-1])
            return Found(rows, masks_of_the_file(one, *sizes))


class _FileFinder:
    def __init__(self, file: ExportedDetector, image_size: int | None) -> None:
        if image_size is not None and file.exact:
            height, width = file.preprocess.size
            raise FoveateError(f"image_size={image_size}: {file.path} takes images of {height}x{width} pixels alone")
        self.file, self.labels = file, file.names
        shorter = image_size or min(file.preprocess.size)
        self.preprocess = file.preprocess if file.exact else replace(file.preprocess, size=(shorter, shorter))

    def check(self) -> None:
        """Of a file nothing is known."""

    def find(self, image: Image.Image) -> Found:
        prepare = partial(resized, exact=True) if self.file.exact else resized_for_boxes
        pixels = normalised(prepare(image, self.preprocess)[None], self.preprocess, torch.device("cpu"))
        return Found(_rows(self.file.objects(pixels), image, pixels))


def _finder(model: Detector | ExportedDetector, image_size: int | None) -> _Finder:
    return _FileFinder(model, image_size) if isinstance(model, ExportedDetector) else _NetworkFinder(model, image_size)


def _rows(one: Mapping[str, Tensor], image: Image.Image, pixels: Tensor) -> Tensor:
    return in_pixels_of_the_file(one, (image.height, image.width), (pixels.shape[-2], pixels.shape[-1]))


def evaluate_detector(
    network: object,
    data: DetectionData | DetectionSplit,
    *,
    part: str = "val",
    image_size: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
) -> DetectionEvaluation:
    """Measure a detection network on images with boxes, in pixels of their files. The model is left as found.

    Where network and data have masks, the mAP of masks is measured, too.

    Args:
        network: for detection, or its file.
        data: both parts, or one.
        part: of data that is not a part: "val" or "train".
        image_size: as in ``predict_objects``.
        batch_size: images in a step, as far as they have one size.
        workers: processes that load images.
        progress: show a bar.

    Raises:
        FoveateError: it is no detector, has other classes, or an image cannot be read.
        Diverged: a weight is NaN or infinite.
    """
    if part not in ("val", "train"):
        raise FoveateError(f"part {part!r}: of images with boxes it is 'val' or 'train'")
    if not isinstance(network, Detector | ExportedDetector):
        given = type(network).__name__
        raise FoveateError(f"these data have boxes, and {given} is not a detector: build one with create_detector")
    split = data if isinstance(data, DetectionSplit) else getattr(data, part)
    if isinstance(network, ExportedDetector):
        names, count = network.classes or (), len(network.names)
    else:
        names, count = stored_names(network, len(split.classes)), network.num_classes
    if count != len(split.classes) or (names and names != split.classes):
        own = ", ".join(names[:12]) if names else f"{count} without names"
        raise FoveateError(
            f"the model's classes ({own}) are not the data's ({', '.join(split.classes[:12])}) in the same order: give "
            "data of the model's classes, or train the model on this data"
        )
    if isinstance(network, ExportedDetector):  # one image at a time, each in the size that the file takes
        finder = _finder(network, image_size)
        with ProgressBar(progress) as bar:
            indices = bar.track(iter(range(len(split))), f"evaluating on {split.name}", len(split), lambda _: 1)
            rows = [finder.find(split.load(index)).rows[:MOST] for index in indices]
        return measure_objects(rows, split.objects, split.classes)
    preprocess = WholeImage.of(network, image_size).preprocess
    loader = BoxLoader(split, preprocess, workers=workers, masks=network.with_masks)
    if network.with_masks:
        require_masks()
    with preserve_state(network, evaluation=True, no_grad=True), ProgressBar(progress) as bar:
        shown = bar.track(loader.whole(batch_size), f"evaluating on {split.name}", len(split), images_in)
        found = collect_objects(lambda inputs: loader.forward(network, inputs), shown)
    return measure_objects(found.found, found.objects, split.classes, found.masks)
