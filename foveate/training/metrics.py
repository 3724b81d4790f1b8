"""How good a classifier is, measured on images that it was not trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import FoveateError
from foveate.html import html_table
from foveate.io import JsonObject, write_csv
from foveate.scores import check_labels, top_classes
from foveate.training.input.sampler import Batch

__all__ = ["Diverged", "Evaluation", "collect_scores", "measure"]

_CALIBRATION_BINS = 15


class Diverged(FoveateError):
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

    curves: ClassVar[Mapping[str, str]] = {
        "train_loss": "training loss",
        "eval_loss": "validation loss",
        "eval_top1": "validation top-1, share",
    }

    @property
    def headline(self) -> str:
        """The most important numbers, in a line."""
        return f"top-1 {100 * self.top1:.1f}%, macro-F1 {100 * self.macro_f1:.1f}%, ECE {100 * self.ece:.1f}%"

    @cached_property
    def confusion(self) -> Tensor:
        """(K, K) int64: how many images of each class (row) were predicted as each class (column)."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        found: Tensor = multiclass_confusion_matrix(self.predictions, self.labels, self.probabilities.shape[1])
        return found

    def per_class(self, classes: Sequence[str] | None = None) -> list[JsonObject]:
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

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows of :meth:`per_class` as CSV, whole or not at all.

        Raises:
            FoveateError: the file cannot be written.
        """
        return write_csv(Path(path), self.per_class())

    def draw_confusion(self, path: str | os.PathLike[str]) -> Path:
        """Write the confusion matrix as a picture: each row is a class, its colours are shares of the row.

        Args:
            path: a name that ends in .png, .svg or .pdf.

        Raises:
            FoveateError: the name ends in something else, or the file cannot be written.
        """
        from foveate.training.confusion_picture import draw

        count = len(self.confusion)
        return draw(self.confusion, self.classes or tuple(map(str, range(count))), self.top1, Path(path))

    def _repr_html_(self) -> str:
        """The metrics of all images as a small table."""
        rows = [
            ("images", str(len(self.labels))),
            ("top-1", f"{self.top1:.2%}"),
            ("top-5", f"{self.top5:.2%}"),
            ("loss", f"{self.loss:.4f}"),
            ("macro F1", f"{self.macro_f1:.4f}"),
            ("calibration error", f"{self.ece:.4f}"),
        ]
        return html_table(("metric", "value"), rows)

    def to_dict(self, classes: Sequence[str] | None = None) -> JsonObject:
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
    # torchmetrics puts a confidence of exactly 1 into a bin of its own, beyond the last one.
    below_one = probabilities.clamp(max=1 - torch.finfo(torch.float32).eps)
    return Evaluation(
        loss=float(F.cross_entropy(logits.double(), labels)),
        top1=float(right[:, 0].double().mean()),
        top5=float(right.any(dim=1).double().mean()),
        macro_f1=float(f1),
        ece=float(metrics.multiclass_calibration_error(below_one, labels, classes, n_bins=_CALIBRATION_BINS)),
        predictions=best[:, 0],
        labels=labels,
        probabilities=probabilities,
    )


def collect_scores(
    forward: Callable[[Tensor], Tensor], batches: Iterable[Batch], classes: int = 0
) -> tuple[Tensor, Tensor]:
    """Scores (N, K) float32 and labels (N,) of all batches, without gradients; (0, classes) and (0,) of none."""
    scores, labels, count = torch.empty(0, classes), torch.empty(0, dtype=torch.int64), 0
    with torch.no_grad():
        for inputs, right in batches:
            found = forward(inputs).float().cpu()
            scores, labels = _put(scores, found, count), _put(labels, right, count)
            count += len(right)
    return scores[:count].clone(), labels[:count].clone()


def _put(rows: Tensor, more: Tensor, count: int) -> Tensor:
    """Put rows behind the first ``count``, into twice the room where there is none.

    A small tensor for each batch, kept until the end, would lie between what the batches need and give back, and the
    allocator could not use that again: memory would grow by a kilobyte for each image.
    """
    needed = count + len(more)
    if needed > len(rows) or not count:
        larger = more.new_empty((max(2 * count, needed), *more.shape[1:]))
        if count:
            larger[:count] = rows[:count]
        rows = larger
    rows[count:needed] = more
    return rows
