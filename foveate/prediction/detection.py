"""Detection networks: the objects in images, and how good they are where the objects are known."""

from __future__ import annotations

from collections.abc import Iterator

from foveate.data.detection import DetectionData, DetectionSplit
from foveate.dense import Detector
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.networks.class_names import stored_names
from foveate.prediction.detection_result import Detections, ImageDetections
from foveate.prediction.inputs import Images, Inputs, Item
from foveate.preserve import preserve_state
from foveate.progress import ProgressBar
from foveate.training.input.detection import BoxLoader, check_finite
from foveate.training.input.loaders import normalised
from foveate.training.input.sampler import images_in
from foveate.training.tasks.detection_metrics import (
    DetectionEvaluation,
    collect_objects,
    in_pixels_of_the_file,
    measure_objects,
)
from foveate.whole_images import WholeImage, resized_for_boxes

__all__ = ["evaluate_detector", "predict_objects"]


def predict_objects(
    network: Detector,
    images: Images,
    *,
    image_size: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Detections:
    """Find the objects in images. Nothing is computed before the result is read.

    Args:
        network: used in evaluation mode on the device where it is.
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
    inputs = Inputs(images)
    bad: list[tuple[str, str]] = []
    preprocess = WholeImage.of(network, image_size).preprocess
    labels = stored_names(network, network.num_classes) or tuple(map(str, range(network.num_classes)))

    def stream() -> Iterator[ImageDetections]:
        check_finite(network)
        with ProgressBar(progress) as bar:
            task = bar.task("predicting", inputs.count() if progress else None)
            for item in inputs:
                try:
                    found = _objects(network, item, preprocess, labels)
                except FoveateError as error:
                    if strict:
                        raise
                    bad.append((item.name, str(error)))
                else:
                    yield found
                bar.advance(task, 1)

    return Detections(stream(), bad, labels)


def _objects(network: Detector, item: Item, preprocess: Preprocess, labels: tuple[str, ...]) -> ImageDetections:
    device, dtype = device_and_dtype(network)
    image = item.load()
    with preserve_state(network, evaluation=True, no_grad=True):
        pixels = normalised(resized_for_boxes(image, preprocess)[None], preprocess, device).to(dtype)
        one = network([pixels[0]])[0]
    rows = in_pixels_of_the_file(one, (image.height, image.width), (pixels.shape[-2], pixels.shape[-1]))
    if not rows.isfinite().all():
        raise FoveateError("the model's boxes or scores are NaN or infinite")
    boxes, scores, classes = rows[:, :4], rows[:, 4], rows[:, 5].long()
    return ImageDetections(item.name, boxes, scores, classes, labels, (image.height, image.width), item.path, item)


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

    Args:
        network: for detection.
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
    if not isinstance(network, Detector):
        given = type(network).__name__
        raise FoveateError(f"these data have boxes, and {given} is not a detector: build one with create_detector")
    split = data if isinstance(data, DetectionSplit) else getattr(data, part)
    names = stored_names(network, len(split.classes))
    if network.num_classes != len(split.classes) or (names and names != split.classes):
        own = ", ".join(names[:12]) if names else f"{network.num_classes} without names"
        raise FoveateError(
            f"the model's classes ({own}) are not the data's ({', '.join(split.classes[:12])}) in the same order: give "
            "data of the model's classes, or train the model on this data"
        )
    loader = BoxLoader(split, WholeImage.of(network, image_size).preprocess, workers=workers)
    with preserve_state(network, evaluation=True, no_grad=True), ProgressBar(progress) as bar:
        shown = bar.track(loader.whole(batch_size), f"evaluating on {split.name}", len(split), images_in)
        found = collect_objects(lambda inputs: loader.forward(network, inputs), shown)
    return measure_objects(*found, split.classes)
