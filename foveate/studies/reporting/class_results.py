"""The classes of a comparison: which are recognised, which are taken for which, and the images where plans differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from foveate.studies.comparison.results import Comparison
from foveate.studies.reporting.tables import Cell, PlanTable, signed

__all__ = [
    *("MOST_CLASSES", "changed_images", "class_table", "confusion_of", "confusion_table", "hardest_images"),
    "score_table",
]

MOST_CLASSES = 24  # rows of a table
_PAIRS = 10


def class_table(classes: Sequence[str], labels: Tensor, predictions: Mapping[str, Tensor]) -> tuple[PlanTable, str]:
    """The share of each class's images that is right, and each plan's difference to the first one.

    Args:
        classes: their names.
        labels: (N,) the true class of each image.
        predictions: for each plan (S, N), the predicted classes of S seeds.

    Returns:
        The table, and which classes it leaves out: of many, those are shown that differ most between the plans.
    """
    recalls = torch.stack([recall_of(labels, of, len(classes)) for of in predictions.values()])  # (plans, classes)
    images = torch.bincount(labels.long(), minlength=len(classes))
    return _table(classes, images, recalls, list(predictions))


def score_table(comparison: Comparison, classes: Sequence[str], plans: Sequence[str]) -> tuple[PlanTable, str]:
    """What each class has of the score, such as its IoU, and each plan's difference to the first one.

    Args:
        comparison: of segmentation or detection.
        classes: their names.
        plans: those to be shown.

    Returns:
        The table, and which classes it leaves out, as ``class_table`` gives them.
    """
    found = comparison.class_scores(plans)
    values = torch.stack([of.nanmean(0) for of, _ in found.values()])  # (plans, classes)
    return _table(classes, found[plans[0]][1], values, list(plans))


def _table(classes: Sequence[str], images: Tensor, values: Tensor, plans: Sequence[str]) -> tuple[PlanTable, str]:
    """A row for each class that has images (K,), with a share (plans, K) for each plan."""
    chosen = [c for c in range(len(classes)) if images[c] > 0]
    left_out = ""
    if len(chosen) > MOST_CLASSES:
        apart = (values - values[0]).abs().amax(dim=0)
        order = sorted(chosen, key=lambda c: (-float(apart[c]), float(values[0, c])))
        left_out = f"{MOST_CLASSES} of {len(chosen)} classes: those in which a plan differs most from the first."
        chosen = sorted(order[:MOST_CLASSES])
    first, *others = values
    cells = [
        [
            Cell(f"{images[c]:,}", kind="number"),
            Cell(f"{100 * first[c]:.1f}", kind="number"),
            *(Cell(f"{100 * of[c]:.1f}", signed(100 * float(of[c] - first[c]), 1), kind="number") for of in others),
        ]
        for c in chosen
    ]
    return PlanTable(["Images", *plans], [classes[c] for c in chosen], cells, first="Class"), left_out


def confusion_of(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """(classes, classes): images of each true class (row) that the seeds (S, N) predicted as each class (column)."""
    pairs = labels.long().expand_as(predictions) * classes + predictions.long()
    return torch.bincount(pairs.flatten(), minlength=classes * classes).view(classes, classes)


def recall_of(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """(classes,) the share of each class's images that the seeds (S, N) predicted right; 0 without images."""
    confusion = confusion_of(labels, predictions, classes).double()
    return confusion.diagonal() / confusion.sum(dim=1).clamp_min(1)


def confusion_table(classes: Sequence[str], labels: Tensor, predictions: Mapping[str, Tensor]) -> PlanTable | None:
    """The pairs of classes that are confused most often, as images for each seed; None where nothing is confused."""
    found = torch.stack(
        [confusion_of(labels, of, len(classes)).double() / len(of) for of in predictions.values()]
    )  # (plans, K, K)
    wrong = found.sum(dim=0).fill_diagonal_(0)
    values, places = wrong.flatten().sort(descending=True, stable=True)
    pairs = [divmod(int(place), len(classes)) for value, place in zip(values, places, strict=True) if value > 0][
        :_PAIRS
    ]
    if not pairs:
        return None
    cells = [[Cell(f"{of[true, said]:.3g}", kind="number") for of in found] for true, said in pairs]
    names = [f"{classes[true]}, taken for {classes[said]}" for true, said in pairs]
    return PlanTable(list(predictions), names, cells, first="True class")


def hardest_images(labels: Tensor, predictions: Mapping[str, Tensor], most: int) -> list[int]:
    """The images that most networks have wrong, at least half of them, the hardest first."""
    wrong = torch.cat([(of != labels).double() for of in predictions.values()]).mean(dim=0)
    order = wrong.argsort(descending=True, stable=True)[:most]
    return [int(index) for index in order if wrong[index] >= 0.5]


def changed_images(labels: Tensor, first: Tensor, plan: Tensor, most: int) -> tuple[list[int], list[int]]:
    """The images that a plan has right more often than the first plan, and those that it has right less often.

    Args:
        labels: (N,).
        first: (S, N) the predictions of the first plan.
        plan: (S, N) the plan's.
        most: at most so many of each.
    """
    change = (plan == labels).double().mean(dim=0) - (first == labels).double().mean(dim=0)
    up = [int(i) for i in change.argsort(descending=True, stable=True)[:most] if change[i] > 0]
    down = [int(i) for i in change.argsort(stable=True)[:most] if change[i] < 0]
    return up, down
