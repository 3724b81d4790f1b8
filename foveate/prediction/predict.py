"""``predict``: images in, classes out, as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypedDict, Unpack, overload

import torch
from torch import Tensor

from foveate.arguments import at_least
from foveate.classifier_protocol import batched_logits
from foveate.dense import Detector, Segmenter
from foveate.errors import FoveateError
from foveate.exporters.opened import ExportedDetector, ExportedSegmenter
from foveate.kernels.waiting import SharedCores
from foveate.prediction.decoding import decoded
from foveate.prediction.detection import predict_objects
from foveate.prediction.detection_result import Detections
from foveate.prediction.inputs import Images, Inputs, Item
from foveate.prediction.opening import AnyModel, device_of, open_classifier, open_model
from foveate.prediction.pixels import TestTime
from foveate.prediction.result import Prediction, Predictions
from foveate.prediction.segmentation import Masks, predict_masks
from foveate.progress import ProgressBar
from foveate.scores import top_classes
from foveate.training.input.loaders import normalised

__all__ = ["predict"]

Named = tuple[str, Path | None]  # an image's name, and its file


class _Options(TypedDict, total=False):
    top: int
    image_size: int | None
    batch_size: int
    threads: int | None
    strict: bool
    progress: bool
    flip: bool
    scales: Sequence[float]
    window: int | None


@overload
def predict(  # type: ignore[overload-overlap]  # a Segmenter is a network, too, of which this is the rule
    model: Segmenter | ExportedSegmenter, images: Images, **options: Unpack[_Options]
) -> Masks: ...


@overload
def predict(  # type: ignore[overload-overlap]  # as above
    model: Detector | ExportedDetector, images: Images, **options: Unpack[_Options]
) -> Detections: ...


@overload
def predict(model: AnyModel, images: Images, **options: Unpack[_Options]) -> Predictions: ...


def predict(
    model: AnyModel,
    images: Images,
    *,
    top: int = 5,
    image_size: int | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    strict: bool = False,
    progress: bool = False,
    flip: bool = False,
    scales: Sequence[float] = (),
    window: int | None = None,
) -> Predictions | Masks | Detections:
    """Say of which class images are, or with a segmentation network each of their pixels; a detector finds objects.

    Nothing is computed before the result is read.

    Images are decoded on threads, a batch ahead of the network, and neither pictures nor results pile up: a hundred
    thousand images take the memory of a few batches. The model is left as found, between any two predictions.

    Args:
        model: a classifier: an ``nn.Module``, used in evaluation mode on the device where it is; a folder that ``save``
            or ``fit`` wrote; or an object of the protocol of ``foveate.classifier_protocol``, such as an exported file.
        images: a path, the bytes of an image file, a PIL image, a part of a data set such as ``data.val``, or any
            iterable of paths, bytes and PIL images, also a generator. A path is a file, a folder (the images in it and
            below), or a pattern such as "photos/*.jpg".
        top: how many classes :attr:`Prediction.top` lists.
        image_size: side of the images in pixels, instead of the model's own.
        batch_size: images in one pass.
        threads: threads that decode; without it one for each core, at most 4.
        strict: stop at the first image that cannot be read. Without it such images are listed in ``bad``, and the
            others go on.
        progress: show a bar.
        flip: of segmentation: show each image flipped left to right, too, and average the probabilities.
        scales: of segmentation: show each image with its shorter side at these multiples of the size, and average.
        window: of segmentation: show each image in windows of so many pixels, which overlap by a third.

    Returns:
        The predictions, in the order of the images: iterate, or ``.to_csv("predictions.csv")``. Of a segmentation
        network the masks: iterate, or ``.write("masks/")``; of a detector the objects: iterate, or
        ``.write("boxes.json")``. For these two ``top``, ``batch_size`` and ``threads`` mean nothing.

    Raises:
        FoveateError: there is no such model or image, the images are something else, or an option is out of range.
    """
    for name, value in (("top", top), ("batch_size", batch_size), ("threads", threads)):
        if value is not None or name != "threads":
            at_least(1, **{name: value})
    model = open_model(model)
    views = TestTime.of(flip, scales, window)
    if isinstance(model, Segmenter | ExportedSegmenter):
        options = {"image_size": image_size, "strict": strict, "progress": progress}
        return predict_masks(model, images, test_time=views, **options)  # type: ignore[arg-type]  # they are its own
    views.refuse_for_others()
    if isinstance(model, Detector | ExportedDetector):
        return predict_objects(model, images, image_size=image_size, strict=strict, progress=progress)
    inputs = Inputs(images)
    classifier = open_classifier(model, image_size=image_size)
    bad: list[tuple[str, str]] = []

    def stream(result: Predictions) -> Iterator[Prediction]:
        total = inputs.count() if progress else None
        ready = decoded(inputs, classifier.preprocess, batch_size + (threads or 4), threads)
        with closing(ready), ProgressBar(progress) as bar, SharedCores() as cores:
            task = bar.task("predicting", total)
            for names, pixels in _batches(ready, batch_size, bad, strict):
                cores.look()
                logits = batched_logits(classifier, normalised(pixels, classifier.preprocess, device_of(classifier)))
                if not result.has_classes:
                    result.set_classes(classifier.classes, logits.shape[1])
                yield from _predictions(names, logits, result.labels, top, bad, strict)
                bar.advance(task, len(names))

    return Predictions(stream, bad, inputs.folders)


def _batches(
    ready: Iterator[tuple[Item, Tensor | FoveateError]], size: int, bad: list[tuple[str, str]], strict: bool
) -> Iterator[tuple[list[Named], Tensor]]:
    """Batches of images that could be read: each is full but the last, as without the others."""
    names: list[Named] = []  # not the items: they hold encoded images, or pictures
    pixels: list[Tensor] = []
    for item, found in ready:
        if isinstance(found, FoveateError):
            if strict:
                raise found
            bad.append((item.name, str(found)))
            continue
        names.append((item.name, item.path))
        pixels.append(found)
        if len(names) == size:
            yield names, torch.stack(pixels)
            names, pixels = [], []
    if names:
        yield names, torch.stack(pixels)


def _predictions(
    names: list[Named], logits: Tensor, labels: tuple[str, ...], top: int, bad: list[tuple[str, str]], strict: bool
) -> Iterator[Prediction]:
    """The predictions of one batch. An image whose scores are not finite has none."""
    finite = logits.isfinite().all(dim=1).tolist()
    probabilities = logits.softmax(dim=1)
    best = top_classes(logits, top)
    for row, (name, path) in enumerate(names):
        if not finite[row]:
            reason = "the model's scores for it are NaN or infinite"
            if strict:
                raise FoveateError(f"{name}: {reason}")
            bad.append((name, reason))
            continue
        shares = probabilities[row]
        found = tuple((labels[number], float(shares[number])) for number in best[row].tolist())
        label, share = found[0]
        yield Prediction(name, int(best[row, 0]), label, share, found, shares, path)
