"""How good a classifier is, measured on images that it was not trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.data.opening import open_data
from foveate.data.split import Split
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.networks.class_names import class_names, class_positions, to_outputs
from foveate.preserve import preserve_state
from foveate.progress import ProgressBar
from foveate.scores import check_labels, top_classes
from foveate.training.input.loaders import Source
from foveate.training.input.sampler import Batch, images_in, of_whole

if TYPE_CHECKING:
    from foveate.data.split import ImageData

__all__ = ["Diverged", "Evaluation", "collect_scores", "evaluate", "measure"]

_CALIBRATION_BINS = 15


class Diverged(FoveateError):  # noqa: N818 - as FloatingPointError and StopIteration, it says what happened
    """The loss or the model's outputs are NaN or infinite."""

    exit_code = 3


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model predicts for N images of K classes, and how good that is.

    Args:
        loss: mean cross entropy in nats, without label smoothing.
        top1: share of the images whose highest score is the right class, 0 to 1.
        top5: share whose five highest scores hold the right class (all K, where K < 5).
        macro_f1: F1 of each class, averaged over the classes that are present or predicted.
        ece: expected calibration error, 15 bins (Guo et al., On Calibration of Modern Neural Networks, 2017).
        predictions: (N,) int64, the class with the highest score.
        labels: (N,) int64.
        probabilities: (N, K) float32, softmax of the scores.
        classes: names of the K classes; () where neither model nor data name them.
    """

    loss: float
    top1: float
    top5: float
    macro_f1: float
    ece: float
    predictions: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    probabilities: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def confusion(self) -> Tensor:
        """(K, K) int64: how many images of each class (row) were predicted as each class (column)."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        found: Tensor = multiclass_confusion_matrix(self.predictions, self.labels, self.probabilities.shape[1])
        return found

    def per_class(self, classes: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A row for each class: name, images, recall (its accuracy), precision and F1, 0 where nothing is counted.

        Args:
            classes: their names; without them those of :attr:`classes`, else their numbers.

        Raises:
            FoveateError: there are more or fewer names than classes.
        """
        classes = classes or self.classes
        from torchmetrics.functional import classification as metrics

        count = self.probabilities.shape[1]
        if classes and len(classes) != count:
            raise FoveateError(f"{len(classes)} class names for {count} classes: leave them out for the model's own")
        given = (self.predictions, self.labels, count)
        columns = {
            "recall": metrics.multiclass_recall(*given, average=None),
            "precision": metrics.multiclass_precision(*given, average=None),
            "f1": metrics.multiclass_f1_score(*given, average=None),
        }
        images = self.confusion.sum(dim=1).tolist()
        return [
            {"class": str(classes[label] if classes else label), "images": images[label]}
            | {name: float(values[label]) for name, values in columns.items()}
            for label in range(count)
        ]

    def to_dict(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """Every metric as plain numbers, for JSON."""
        numbers = {name: getattr(self, name) for name in ("loss", "top1", "top5", "macro_f1", "ece")}
        return {**numbers, "classes": self.per_class(classes), "confusion": self.confusion.tolist()}


def measure(logits: Tensor, labels: Tensor) -> Evaluation:
    """Every metric from the scores (N, K) and the right classes (N,).

    Raises:
        Diverged: a score is NaN or infinite.
        FoveateError: there is no image, there are fewer than two classes, or a label is not one of them.
    """
    from torchmetrics.functional import classification as metrics  # imports for seconds

    count, classes = logits.shape
    if not count:
        raise FoveateError("there is no image to evaluate")
    labels = check_labels(labels.cpu(), classes)
    bad = int((~logits.isfinite().all(dim=1)).sum())
    if bad:
        raise Diverged(f"the model's outputs are NaN or infinite for {bad} of {count} images: lower the learning rate")
    logits = logits.float().cpu()
    probabilities = logits.softmax(dim=1)
    best = top_classes(logits, 5)
    right = best == labels[:, None]
    f1 = metrics.multiclass_f1_score(best[:, 0], labels, classes, average="macro")
    return Evaluation(
        loss=float(F.cross_entropy(logits.double(), labels)),
        top1=float(right[:, 0].double().mean()),
        top5=float(right.any(dim=1).double().mean()),
        macro_f1=float(f1),
        ece=float(metrics.multiclass_calibration_error(probabilities, labels, classes, n_bins=_CALIBRATION_BINS)),
        predictions=best[:, 0],
        labels=labels,
        probabilities=probabilities,
    )


def collect_scores(
    forward: Callable[[Tensor], Tensor], batches: Iterable[Batch], classes: int = 0
) -> tuple[Tensor, Tensor]:
    """Scores (N, K) float32 and labels (N,) of all batches, without gradients; (0, classes) and (0,) of none."""
    scores, labels = [], []
    with torch.no_grad():
        for inputs, right in batches:
            scores.append(forward(inputs).float().cpu())
            labels.append(right)
    if not scores:
        return torch.empty(0, classes), torch.empty(0, dtype=torch.int64)
    return torch.cat(scores), torch.cat(labels)


def evaluate(
    model: nn.Module,
    data: Split | ImageData | str | os.PathLike[str],
    *,
    preprocess: Preprocess | None = None,
    image_size: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Measure a model on images, in eval mode, on the device where it is. The model is left as found.

    Args:
        model: a classifier. Where it carries class names (``fit`` and ``save`` keep them), the split's classes are
            found among them by name, in any order; every class of the model stands to be predicted.
        data: a part such as ``data.train``; or what ``fit`` takes (a folder, ``hf:NAME``, ...), of which the validation
            part is used. Where it has no split of its own, that is the fifth that ``fit`` does not train on, either.
        preprocess: how images are prepared; without it as the model says.
        image_size: side of the images in pixels, instead of the model's own.
        batch_size: images in a step.
        workers: processes that load images.
        progress: show a bar.

    Raises:
        FoveateError: an image cannot be read, or the split has a class that the model does not know.
        Diverged: a score is NaN or infinite.
    """
    split = data if isinstance(data, Split) else open_data(data).val
    if not len(split):
        raise FoveateError(f"the split {split.name!r} has no image to evaluate")
    device, dtype = device_and_dtype(model)
    source = Source(split, "", preprocess or Preprocess.of(model, image_size), workers)
    with ProgressBar(progress) as bar, preserve_state(model, evaluation=True):
        batches = source.stream()(of_whole(len(split), batch_size))
        shown = bar.track(batches, f"evaluating on {split.name}", len(split), images_in)
        forward = _Checked(model, split.classes, lambda inputs: model(source.normalised(inputs, device).to(dtype)))
        scores, labels = collect_scores(forward, shown)
        found = measure(scores, forward.labels(labels))
    return replace(found, classes=class_names(model, scores.shape[1]) or split.classes)


class _Checked:
    """A forward pass that looks, at the first batch, whether the model's classes are those of the data.

    Args:
        model: gives the scores.
        classes: of the data.
        forward: batch -> scores (B, K).
    """

    def __init__(self, model: nn.Module, classes: Sequence[str], forward: Callable[[Tensor], Tensor]) -> None:
        self.model, self.classes, self.forward = model, classes, forward
        self.seen = False
        self.positions: tuple[int, ...] | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        scores = self.forward(inputs)
        if not self.seen and self.classes and scores.ndim == 2:
            self.positions = class_positions(self.model, self.classes, scores.shape[1])
        self.seen = True
        return scores

    def labels(self, labels: Tensor) -> Tensor:
        """Labels of the data (N,) as positions among the model's classes."""
        return to_outputs(labels, self.positions)
