"""Average precision with a weight for each image, as COCO counts it: what resampling images needs.

Lin et al., Microsoft COCO, ECCV 2014, and its evaluation: in each image and class boxes take the objects that they
overlap most, the highest score first, at ten thresholds of intersection over union; a box on an ignored object counts
nowhere. Precision is made monotone and read at 101 recalls.

With all weights 1 it is the mAP of ``DetectionEvaluation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveate.data.detection.split import Objects

__all__ = ["RECALLS", "THRESHOLDS", "Matches", "average_precision", "match_objects"]

THRESHOLDS = torch.from_numpy(np.linspace(0.5, 0.95, 10))  # of intersection over union
RECALLS = torch.from_numpy(np.linspace(0, 1, 101))  # as COCO's own program rounds them


@dataclass(frozen=True, eq=False)
class Matches:
    """What became of each box of a run on N images of K classes.

    Args:
        image: (n,) int64.
        label: (n,) int64.
        score: (n,).
        right: (n, 10) bool, whether it has an object, at each threshold.
        counted: (n, 10) bool, False where its object is ignored.
        present: (N, K) int64, objects that are not ignored.
    """

    image: Tensor
    label: Tensor
    score: Tensor
    right: Tensor
    counted: Tensor
    present: Tensor


def match_objects(found: Sequence[Tensor], objects: Sequence[Objects], classes: int) -> Matches:
    """Match boxes with objects.

    Args:
        found: of each image (n, 6), as ``DetectionEvaluation.found``.
        objects: of each image.
        classes: K.
    """
    rows: list[list[Tensor]] = []
    present = torch.zeros(len(found), classes, dtype=torch.int64)
    for image, (of, there) in enumerate(zip(found, objects, strict=True)):
        labels, ignored = torch.from_numpy(there.labels), torch.from_numpy(there.ignored)
        present[image] = labels[~ignored].bincount(minlength=classes)
        for label in sorted(set(of[:, 5].long().tolist())):
            own = of[of[:, 5] == label]
            own = own[own[:, 4].argsort(descending=True, stable=True)]
            these = labels == label
            right, counted = _matched(own[:, :4], torch.from_numpy(there.boxes)[these], ignored[these])
            numbers = [torch.full((len(own),), value, dtype=torch.int64) for value in (image, label)]
            rows.append([*numbers, own[:, 4], right, counted])
    if not rows:
        empty = torch.zeros(0, dtype=torch.int64)
        return Matches(empty, empty, empty.float(), empty.bool().view(0, 1), empty.bool().view(0, 1), present)
    image_, label_, score, right, counted = (torch.cat(of) for of in zip(*rows, strict=True))
    return Matches(image_, label_, score, right, counted, present)


def _matched(boxes: Tensor, objects: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each box, the highest score first, has an object, and whether it counts; (n, 10) each."""
    right = np.zeros((len(boxes), len(THRESHOLDS)), dtype=bool)
    counted = np.ones_like(right)
    if not len(objects):
        return torch.from_numpy(right), torch.from_numpy(counted)
    overlap, crowd = _overlap(boxes.double(), objects.double(), ignored).numpy(), ignored.numpy()
    least = np.minimum(THRESHOLDS.numpy(), 1 - 1e-10)
    every = np.arange(len(least))
    free = np.ones((len(least), len(crowd)), dtype=bool)
    for box, row in enumerate(overlap):
        if row.max() < least[0]:
            continue
        for kind in (~crowd, crowd):  # one that is ignored where no other is near enough
            values = np.where(free & kind, row, -1.0)
            best = values.shape[1] - 1 - values[:, ::-1].argmax(1)  # of equal ones the last, as COCO's loop has it
            taken = (values[every, best] >= least) & ~right[box]
            right[box] |= taken
            counted[box] &= ~(taken & crowd[best])
            free[every[taken], best[taken]] &= crowd[best[taken]]  # a crowd may have several
    return torch.from_numpy(right), torch.from_numpy(counted)


def _overlap(boxes: Tensor, objects: Tensor, ignored: Tensor) -> Tensor:
    """(n, m) intersection over union, of an ignored object over the box alone."""
    low = torch.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area, other = ((of[:, 2:] - of[:, :2]).prod(-1) for of in (boxes, objects))
    whole = torch.where(ignored, area[:, None], area[:, None] + other - common)
    return common / whole.clamp(min=1e-300)


def average_precision(matches: Matches, weights: Tensor) -> Tensor:
    """(B, K) float64, of each class over all thresholds, where image i counts ``weights[b, i]`` times.

    Args:
        matches: of a run on N images.
        weights: (B, N), 0 or more.

    Returns:
        NaN where a class has no object with a weight.
    """
    weights = weights.double()
    found = []
    for label in range(matches.present.shape[1]):
        own = (matches.label == label).nonzero()[:, 0]
        own = own[matches.score[own].argsort(descending=True, stable=True)]
        total = weights @ matches.present[:, label].double()
        each = weights[:, matches.image[own]]
        values = [
            _at_recalls(each * right, each * (counted & ~right), total)
            for right, counted in zip((matches.right & matches.counted)[own].T, matches.counted[own].T, strict=True)
        ]
        value = torch.stack(values).mean(0) if len(own) else torch.zeros(len(weights), dtype=torch.float64)
        found.append(torch.where(total > 0, value, torch.nan))
    return torch.stack(found, 1)


def _at_recalls(right: Tensor, wrong: Tensor, total: Tensor) -> Tensor:
    """(B,) mean precision at 101 recalls, from weights of right and wrong boxes (B, n), the highest score first."""
    right, wrong = right.cumsum(1), wrong.cumsum(1)
    precision = right / (right + wrong).clamp(min=1e-300)
    highest = precision.flip(1).cummax(1).values.flip(1)
    recall = right / total.clamp(min=1e-300)[:, None]
    place = torch.searchsorted(recall.contiguous(), RECALLS.expand(len(recall), -1).contiguous())
    read = torch.cat([highest, torch.zeros(len(highest), 1, dtype=torch.float64)], 1)
    return read.gather(1, place).mean(1)
