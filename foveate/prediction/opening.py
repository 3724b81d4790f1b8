"""From what a user calls a model to a classifier."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from foveate.classifier_protocol import Classifier
from foveate.dense import Detector, Segmenter
from foveate.errors import FoveateError
from foveate.exporters.format import format_names
from foveate.exporters.opened import ExportedDetector, ExportedSegmenter, is_exported, open_exported
from foveate.images import Preprocess
from foveate.prediction.network import NetworkClassifier
from foveate.surgery.saving.checkpoint import load
from foveate.surgery.saving.weights_file import WEIGHTS

__all__ = ["AnyModel", "device_of", "open_classifier", "open_model"]

AnyModel = nn.Module | Classifier | str | os.PathLike[str]
_OF_A_RUN = ("model_best", "last")  # what a training run keeps, the better first


def open_classifier(
    model: AnyModel, *, preprocess: Preprocess | None = None, image_size: int | None = None
) -> Classifier:
    """A classifier from a network, from a folder, or from an object that is one already.

    Args:
        model: an ``nn.Module``; a folder that ``save`` wrote; the folder of a training run, of which ``model_best`` is
            taken, else ``last``; a file that ``export`` wrote; or any object with the names of :class:`Classifier`.
        preprocess: how images are prepared, for a network.
        image_size: side of the images in pixels, for a network; without it its own.

    Raises:
        FoveateError: there is no model at this path, it is something else, or an option does not fit it.
    """
    model = open_model(model)
    if isinstance(model, Segmenter | ExportedSegmenter):
        raise FoveateError(
            "this is a segmentation network, which gives scores for pixels: give it images with label maps, or a "
            "classifier of images"
        )
    if isinstance(model, Detector | ExportedDetector):
        raise FoveateError("this is a detector, which finds objects: give images with boxes, or a classifier of images")
    if isinstance(model, nn.Module):
        return NetworkClassifier(model, preprocess, image_size)
    if not isinstance(model, Classifier):
        raise FoveateError(
            f"the model is a network, a folder that foveate saved, or an object with classes, preprocess, batch and "
            f"logits, not {type(model).__name__}"
        )
    if preprocess is not None or image_size is not None:
        height, width = model.preprocess.size
        raise FoveateError(
            f"{'image_size' if preprocess is None else 'preprocess'}= is for networks: this {type(model).__name__} "
            f"takes images of {height}x{width} pixels, prepared in its own way; leave it out"
        )
    return model


def open_model(model: AnyModel) -> nn.Module | Classifier:
    """What a path leads to, or the model itself.

    Raises:
        FoveateError: there is no model at this path.
    """
    return _open_path(Path(model)) if isinstance(model, str | os.PathLike) else model


def _open_path(path: Path) -> nn.Module | Classifier:
    """What lies at a path."""
    if is_exported(path):
        return open_exported(path)
    if path.is_file():
        raise FoveateError(
            f"{path} is a file of no format that foveate exports ({', '.join(format_names())}): name one of these, or "
            "the folder of a saved model or a training run"
        )
    if path.is_dir() and not (path / WEIGHTS).exists():
        path = next((path / name for name in _OF_A_RUN if (path / name / WEIGHTS).exists()), path)
    return load(path)


def device_of(classifier: Classifier) -> torch.device:
    """Where a classifier wants its images."""
    return classifier.device if isinstance(classifier, NetworkClassifier) else torch.device("cpu")
