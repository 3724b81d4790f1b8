"""``evaluate``: how good a classifier is on images whose classes are known."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypedDict, Unpack, overload

from torch import Tensor

from foveate.arguments import at_least
from foveate.classifier_protocol import Classifier, batched_logits
from foveate.data.detection import DetectionData, DetectionSplit, find_detection, open_detection
from foveate.data.opening import open_data
from foveate.data.segmentation import SegmentationData, SegmentationSplit, find_segmentation, open_segmentation
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError, near
from foveate.images import Preprocess
from foveate.kernels.waiting import SharedCores
from foveate.networks.class_names import output_positions, to_outputs
from foveate.prediction.detection import evaluate_detector
from foveate.prediction.opening import AnyModel, device_of, open_classifier, open_model
from foveate.prediction.pixels import TestTime
from foveate.prediction.segmentation import evaluate_segmenter
from foveate.progress import ProgressBar
from foveate.training.input.loaders import Source
from foveate.training.input.sampler import images_in, of_whole
from foveate.training.metrics import Evaluation, collect_scores, measure
from foveate.training.tasks.choose import AnyData
from foveate.training.tasks.detection_metrics import DetectionEvaluation
from foveate.training.tasks.segmentation_metrics import SegmentationEvaluation

__all__ = ["evaluate"]

_PARTS = ("val", "train", "all")


class _Options(TypedDict, total=False):
    part: Literal["val", "train", "all"]
    preprocess: Preprocess | None
    image_size: int | None
    batch_size: int
    workers: int
    progress: bool
    flip: bool
    scales: Sequence[float]
    window: int | None
    boundary: bool


@overload
def evaluate(
    model: AnyModel, data: SegmentationData | SegmentationSplit, **options: Unpack[_Options]
) -> SegmentationEvaluation: ...


@overload
def evaluate(
    model: AnyModel, data: DetectionData | DetectionSplit, **options: Unpack[_Options]
) -> DetectionEvaluation: ...


@overload
def evaluate(
    model: AnyModel, data: Split | ImageData | str | os.PathLike[str], **options: Unpack[_Options]
) -> Evaluation: ...


def evaluate(
    model: AnyModel,
    data: Split | AnyData | SegmentationSplit | DetectionSplit,
    *,
    part: Literal["val", "train", "all"] = "val",
    preprocess: Preprocess | None = None,
    image_size: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
    flip: bool = False,
    scales: Sequence[float] = (),
    window: int | None = None,
    boundary: bool = False,
) -> Evaluation | SegmentationEvaluation | DetectionEvaluation:
    """Measure a classifier on images, in eval mode, on the device where it is. The model is left as found.

    A segmentation network is measured on images with label maps, at the label maps' own size, a detector on images with
    boxes, in pixels of their files.

    Args:
        model: a network; a folder that ``save`` or ``fit`` wrote; or an object of the protocol of
            ``foveate.classifier_protocol``, such as an exported file. Where it carries class names (``fit`` and
            ``save`` keep them), the data's classes are found among them by name, in any order; every class of the
            model stands to be predicted.
        data: a part such as ``data.train``; or what ``fit`` takes (a folder, ``hf:NAME``, ...), also a folder of one
            class.
        part: of data that is not a part: "val", "train", or "all", both together. Where the data has no split of its
            own, "val" is the fifth that ``fit`` does not train on, either.
        preprocess: how images are prepared; without it as the model says.
        image_size: side of the images in pixels, instead of the model's own.
        batch_size: images in a step.
        workers: processes that load images.
        progress: show a bar.
        flip: of segmentation: show each image flipped left to right, too, and average the probabilities.
        scales: of segmentation: show each image with its shorter side at these multiples of the size, and average.
        window: of segmentation: show each image in windows of so many pixels, which overlap by a third.
        boundary: of segmentation: measure boundary IoU, too, which takes some time.

    Returns:
        The metrics, with the prediction for each image.

    Raises:
        FoveateError: there is no such model or part, ``batch_size`` is below 1 or ``workers`` below 0, an image cannot
            be read, or the data has a class that the model does not know.
        Diverged: a score is NaN or infinite.
    """
    if part not in _PARTS:
        raise FoveateError(f"part {part!r}: {near(str(part), _PARTS)}")
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        at_least(least, **{name: value})
    views = TestTime.of(flip, scales, window)
    if isinstance(data, SegmentationData | SegmentationSplit) or find_segmentation(data):
        if preprocess is not None:
            raise FoveateError("preprocess= is for classifiers: a segmentation network takes image_size=")
        given = data if isinstance(data, SegmentationSplit) else open_segmentation(data)  # type: ignore[arg-type]  # a path
        sizes = {"batch_size": batch_size, "workers": workers, "image_size": image_size}
        return evaluate_segmenter(
            open_model(model),
            given,
            part=part,
            progress=progress,
            test_time=views,
            boundary=boundary,
            **sizes,  # type: ignore[arg-type]
        )
    if boundary:
        raise FoveateError("boundary= is for images with label maps, and these data have none: leave it out")
    if isinstance(data, DetectionData | DetectionSplit) or find_detection(data):
        if preprocess is not None:
            raise FoveateError("preprocess= is for classifiers: a detector takes image_size=")
        boxes = data if isinstance(data, DetectionSplit) else open_detection(data)  # type: ignore[arg-type]  # a path
        views.refuse_for_others()
        of_boxes = {"batch_size": batch_size, "workers": workers}
        return evaluate_detector(
            open_model(model), boxes, part=part, image_size=image_size, progress=progress, **of_boxes
        )
    views.refuse_for_others()
    split = data if isinstance(data, Split) else _part(open_data(data, min_classes=1), part)
    if not len(split):
        raise FoveateError(f"the split {split.name!r} has no image to evaluate")
    classifier = open_classifier(model, preprocess=preprocess, image_size=image_size)
    source, device = Source(split, "", classifier.preprocess, workers), device_of(classifier)
    outputs = _Outputs(classifier, split.classes)
    with ProgressBar(progress) as bar, SharedCores() as cores:
        batches = source.stream()(of_whole(len(split), batch_size))
        shown = bar.track(batches, f"evaluating on {split.name}", len(split), images_in)

        def forward(inputs: Tensor) -> Tensor:
            cores.look()
            return outputs.scores(source.normalised(inputs, device))

        scores, labels = collect_scores(forward, shown)
        found = measure(scores, to_outputs(labels, outputs.positions))
    return replace(found, classes=tuple(classifier.classes or split.classes))


def _part(data: ImageData, part: str) -> Split:
    if part == "all":
        both = (data.train, data.val)
        sources, labels, names = (
            tuple(x for s in both for x in getattr(s, of)) for of in ("sources", "labels", "names")
        )
        return Split("all", sources, labels, names, data.classes)
    return data.train if part == "train" else data.val


class _Outputs:
    """Scores of a classifier, which are compared at the first batch with the classes of the data.

    Args:
        classifier: gives the scores.
        classes: of the data; () where they are not known.

    Attributes:
        positions: where the data's classes stand among the outputs; None where they are the same.
    """

    def __init__(self, classifier: Classifier, classes: Sequence[str]) -> None:
        self.classifier, self.classes = classifier, classes
        self.positions: tuple[int, ...] | None = None
        self._compared = not classes

    def scores(self, images: Tensor) -> Tensor:
        """(B, K) for normalised images."""
        found = batched_logits(self.classifier, images)
        if not self._compared:
            self.positions = output_positions(self.classifier.classes, self.classes, found.shape[1])
            self._compared = True
        return found
