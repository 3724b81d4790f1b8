"""From a classifier's scores to classes, by one rule everywhere: the first of the largest scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from foveate.errors import FoveateError

__all__ = ["check_labels", "check_logits", "class_numbers", "pixel_scores", "predicted_classes", "top_classes"]

_MOST_CLASSES = 255  # that a label map of 8 bits for each pixel holds, beside pixels that do not count


def check_logits(output: object) -> Tensor:
    """The logits in a model's output.

    Raises:
        FoveateError: the output is not (B, classes) with two classes or more.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        given = f"the shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        if isinstance(logits, list) and logits and isinstance(logits[0], Mapping) and "boxes" in logits[0]:
            given = "boxes: this is a detector, which fit, evaluate, predict, explain, cost and save take"
        raise FoveateError(f"the model must give (B, classes) logits of two classes or more, not {given}")
    return logits


def pixel_scores(output: object) -> Tensor:
    """The scores (B, K, H, W) in what a segmentation network gives: itself, or ``out`` of a dictionary.

    Raises:
        FoveateError: there are none, or of more classes than a label map tells apart.
    """
    scores = output.get("out") if isinstance(output, Mapping) else output
    if not isinstance(scores, Tensor) or scores.ndim != 4 or scores.shape[1] < 2:
        given = f"the shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(output).__name__}"
        raise FoveateError(
            f"a segmentation network gives scores (B, classes, H, W) or a dictionary with them as 'out', not {given}: "
            "build one with create_segmenter"
        )
    if scores.shape[1] > _MOST_CLASSES:
        raise FoveateError(
            f"the segmentation network has {scores.shape[1]} classes, and a label map tells {_MOST_CLASSES} apart: "
            "build one with fewer"
        )
    return scores


def predicted_classes(scores: Tensor) -> Tensor:
    """The class of each image, (B,): the first of those with the largest score.

    Args:
        scores: (B, classes). Take logits: softmax rounds small differences of large logits away.
    """
    return scores.float().argmax(dim=1)  # promises the first of several


def top_classes(scores: Tensor, count: int) -> Tensor:
    """The classes with the largest scores, (B, count), the largest first; of equal scores the first class comes first.

    Args:
        scores: (B, classes).
        count: how many, at most the number of classes.
    """
    # topk promises no order of equal scores.
    return scores.float().sort(dim=1, descending=True, stable=True).indices[:, :count]


def class_numbers(labels: Tensor) -> Tensor:
    """Labels, (N,), as int64.

    Raises:
        FoveateError: they are not whole numbers, one for each image.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise FoveateError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype}: give one class number for each image, (N,)"
        )
    return labels.long()


def check_labels(labels: Tensor, classes: int) -> Tensor:
    """The labels of some images, as int64, none of which is beyond the model's classes.

    Args:
        labels: (N,).
        classes: how many classes the model has, so that labels are 0 to classes - 1.

    Raises:
        FoveateError: they are not whole numbers, one for each image, or the model has no such class.
    """
    labels = class_numbers(labels)
    if classes < 2:
        raise FoveateError(f"a classifier needs two classes or more, and this model has {classes}: add another class")
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise FoveateError(
            f"{len(outside)} of {len(labels)} images have a label outside 0..{classes - 1}, such as {int(outside[0])}: "
            f"the model has {classes} classes; leave images without a class out"
        )
    return labels.long()
