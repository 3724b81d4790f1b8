"""How good a segmentation network is: intersection over union, counted over all pixels of all images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.data.segmentation import IGNORE
from foveate.errors import FoveateError
from foveate.html import html_table
from foveate.io import JsonObject, write_csv
from foveate.scores import pixel_scores
from foveate.training.input.sampler import Batch
from foveate.training.metrics import Diverged
from foveate.training.tasks.boundary import boundary_counts

__all__ = [
    *(
        "CollectedCounts",
        "SegmentationEvaluation",
        "at_size",
        "class_ious",
        "collect_counts",
        "image_counts",
        "measure_counts",
    ),
    "score_counts",
]


@dataclass(frozen=True, eq=False)
class SegmentationEvaluation:
    """What a model predicts for the pixels of N images of K classes, and how good that is.

    Pixels that are ignored count nowhere. A class that is neither present nor predicted has no intersection over union
    and is left out of the mean.

    Args:
        loss: mean cross entropy in nats over all pixels, without label smoothing.
        miou: mean over the classes of intersection over union, each counted over all images, 0 to 1.
        pixel_accuracy: share of the pixels whose class is right.
        counts: (N, K, 3) int64: of each image and class the pixels that are and are predicted as the class, those that
            are predicted as it, and those that are it.
        classes: names of the K classes.
        boundary_counts: (N, K, 3) int64, the same of the pixels at the contours, as in ``boundary_miou``; None where it
            was not asked for.
    """

    loss: float
    miou: float
    pixel_accuracy: float
    counts: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    boundary_counts: Tensor | None = field(default=None, repr=False)

    curves: ClassVar[Mapping[str, str]] = {
        "train_loss": "training loss",
        "eval_loss": "validation loss",
        "eval_miou": "validation mIoU, share",
    }

    @property
    def headline(self) -> str:
        """The most important numbers, in a line."""
        boundary = "" if self.boundary_miou is None else f", boundary mIoU {100 * self.boundary_miou:.1f}%"
        return f"mIoU {100 * self.miou:.1f}%{boundary}, pixel accuracy {100 * self.pixel_accuracy:.1f}%"

    @cached_property
    def iou(self) -> Tensor:
        """(K,) float64, of each class over all images; NaN where the class is neither present nor predicted."""
        return class_ious(self.counts.sum(0))

    @property
    def boundary_miou(self) -> float | None:
        """Mean over the classes of boundary IoU (Cheng et al., CVPR 2021), 0 to 1; None where it was not asked for.

        It is the IoU of the pixels within 2% of the image's diagonal of a contour: those of the class in the label map,
        and those in the prediction.
        """
        if self.boundary_counts is None:
            return None
        return float(class_ious(self.boundary_counts.sum(0)).nanmean())

    def per_class(self, classes: Sequence[str] | None = None) -> list[JsonObject]:
        """A row for each class: name, images that have it, its pixels, IoU, recall and precision; None where undefined.

        Where it was asked for, ``boundary_iou``, too.

        Args:
            classes: their names; without them those of :attr:`classes`.

        Raises:
            FoveateError: there are more or fewer names than classes.
        """
        total, present = self.counts.sum(0), (self.counts[..., 2] > 0).sum(0)
        names = classes or self.classes or tuple(map(str, range(len(total))))
        if len(names) != len(total):
            raise FoveateError(f"{len(names)} class names for {len(total)} classes: leave them out for the data's own")
        rows: list[JsonObject] = [
            {
                "class": str(names[label]),
                "images": int(present[label]),
                "pixels": actual,
                "iou": _share(right, predicted + actual - right),
                "recall": _share(right, actual),
                "precision": _share(right, predicted),
            }
            for label, (right, predicted, actual) in enumerate(total.tolist())
        ]
        if self.boundary_counts is not None:
            for row, (right, predicted, actual) in zip(rows, self.boundary_counts.sum(0).tolist(), strict=True):
                row["boundary_iou"] = _share(right, predicted + actual - right)
        return rows

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows of :meth:`per_class` as CSV, whole or not at all.

        Raises:
            FoveateError: the file cannot be written.
        """
        return write_csv(Path(path), self.per_class())

    def to_dict(self, classes: Sequence[str] | None = None) -> JsonObject:
        """Every metric as plain numbers, for JSON."""
        numbers = {name: getattr(self, name) for name in ("loss", "miou", "pixel_accuracy")}
        if self.boundary_miou is not None:
            numbers["boundary_miou"] = self.boundary_miou
        return {**numbers, "images": len(self.counts), "classes": self.per_class(classes)}

    def _repr_html_(self) -> str:
        rows = [
            ("images", str(len(self.counts))),
            ("mIoU", f"{self.miou:.2%}"),
            *((("boundary mIoU", f"{self.boundary_miou:.2%}"),) if self.boundary_miou is not None else ()),
            ("pixel accuracy", f"{self.pixel_accuracy:.2%}"),
            ("loss", f"{self.loss:.4f}"),
        ]
        return html_table(("metric", "value"), rows)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def class_ious(total: Tensor) -> Tensor:
    """(K,) float64 from counts (K, 3); NaN where a class is neither present nor predicted."""
    right, predicted, actual = total.double().unbind(-1)
    return right / (predicted + actual - right)


def image_counts(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """(K, 3) int64 of one image: right, predicted, actual pixels of each class, by torchmetrics' confusion matrix.

    Args:
        predicted: (H, W) classes.
        target: (H, W) classes, or ``IGNORE``.
        classes: K.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    counted = target != IGNORE
    confusion = multiclass_confusion_matrix(predicted[counted], target[counted], classes, validate_args=False)
    return torch.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)], 1)


def at_size(scores: Tensor, size: Sequence[int]) -> Tensor | None:
    """Scores (K, h, w) of one image as (1, K, H, W) float32; None where one is NaN or infinite."""
    own = F.interpolate(scores[None].float(), tuple(size), mode="bilinear", align_corners=False)
    return own if own.isfinite().all() else None


def score_counts(scores: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor] | None:
    """What scores (K, h, w) of one image say at its label map's size: the counts (K, 3), and the classes (H, W).

    Args:
        scores: of one image.
        target: (H, W) int64 classes, or ``IGNORE``.
        classes: K.

    Returns:
        None where a score is NaN or infinite.

    Raises:
        FoveateError: the scores are of another number of classes.
    """
    if len(scores) != classes:
        raise FoveateError(f"the model gives scores for {len(scores)} classes and the data has {classes}")
    own = at_size(scores, target.shape)
    if own is None:
        return None
    predicted = own[0].argmax(0)
    return image_counts(predicted, target, classes), predicted


class CollectedCounts(NamedTuple):
    """What is counted of N images.

    Args:
        counts: (N, K, 3) int64.
        losses: (N, 2) float64, the sum of the pixels' losses and their number.
        boundary: (N, K, 3) int64 at the contours; None where it was not asked for.
    """

    counts: Tensor
    losses: Tensor
    boundary: Tensor | None = None


def collect_counts(forward: Any, batches: Iterable[Batch], classes: int, *, boundary: bool = False) -> CollectedCounts:
    """For each image the counts (N, K, 3) int64, and the sum of its pixels' losses and their number (N, 2) float64.

    Args:
        forward: what the model gives for the inputs of a batch, scores of any size; they are brought to the size of the
            label maps.
        batches: of pixels and label maps.
        classes: K.
        boundary: count the pixels at the contours, too.

    Raises:
        Diverged: a score is NaN or infinite.
        FoveateError: the model gives no scores for pixels, or for another number of classes.
    """
    counts, losses = [torch.empty(0, classes, 3, dtype=torch.int64)], [torch.empty(0, 2, dtype=torch.float64)]
    contours = [counts[0]]
    with torch.no_grad():
        for inputs, targets in batches:
            scores = pixel_scores(forward(inputs))
            if scores.shape[1] != classes:
                raise FoveateError(f"the model gives scores for {scores.shape[1]} classes and the data has {classes}")
            for each, target in zip(scores, targets.to(scores.device).long(), strict=True):
                # One image at a time: at the label maps' own size, scores of many classes take much memory.
                own = at_size(each, target.shape)
                if own is None:
                    raise Diverged("the model's outputs are NaN or infinite: lower the learning rate")
                predicted = own[0].argmax(0)
                counts.append(image_counts(predicted, target, classes)[None].cpu())
                if boundary:
                    contours.append(boundary_counts(predicted, target, classes)[None])
                lost = F.cross_entropy(own, target[None], ignore_index=IGNORE, reduction="sum").double()
                losses.append(torch.stack([lost.cpu(), (target != IGNORE).sum().double().cpu()])[None])
    return CollectedCounts(torch.cat(counts), torch.cat(losses), torch.cat(contours) if boundary else None)


def measure_counts(collected: CollectedCounts, classes: tuple[str, ...]) -> SegmentationEvaluation:
    """Every metric from what :func:`collect_counts` gives.

    Args:
        collected: of all images.
        classes: names of the K classes.

    Raises:
        FoveateError: no pixel of any image counts.
    """
    counts, losses, contours = collected
    total = counts.sum(0)
    pixels = int(total[:, 2].sum())
    if not pixels:
        raise FoveateError("every pixel of every label map is ignored: there is nothing to measure")
    lost, counted = losses.sum(0).tolist()
    return SegmentationEvaluation(
        loss=lost / counted,
        miou=float(class_ious(total).nanmean()),
        pixel_accuracy=int(total[:, 0].sum()) / pixels,
        counts=counts,
        classes=classes,
        boundary_counts=contours,
    )
