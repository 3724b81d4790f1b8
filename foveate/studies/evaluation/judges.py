"""What an audit looks at after each change: predictions of images, and how good they are, for each task."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveate.data.detection import DetectionData, DetectionSplit, find_detection, open_detection
from foveate.data.segmentation import SegmentationData, SegmentationSplit, find_segmentation, open_segmentation
from foveate.dense import Detector
from foveate.errors import FoveateError
from foveate.scores import check_labels, check_logits, pixel_scores, predicted_classes
from foveate.studies.comparison.differences.mean_average_precision import packed
from foveate.studies.comparison.measure import MAP, MIOU, TOP1, Measure
from foveate.studies.comparison.statistics import Difference, difference_of, mcnemar, paired_difference
from foveate.studies.evaluation.in_memory import Data, LoadedImages, load_images
from foveate.studies.evaluation.whole_in_memory import KnownObjects, LoadedWhole, load_boxes, load_maps
from foveate.training.input.detection import check_finite
from foveate.training.tasks.collected_objects import MOST, in_pixels_of_the_file
from foveate.training.tasks.segmentation_metrics import score_counts

__all__ = ["Audited", "ClassJudge", "Judge", "ObjectJudge", "PixelJudge", "load_judged"]

Audited = Data | SegmentationData | SegmentationSplit | DetectionData | DetectionSplit


class Judge(Protocol):
    """What is read of a model's output, and compared."""

    @property
    def measure(self) -> Measure:
        """What the network is judged by."""

    def read(self, output: Any, labels: Any, size: tuple[int, int]) -> Tensor:
        """(B, ...) numbers for the images of a batch; all below 0 where a score is NaN or infinite.

        Args:
            output: of the model.
            labels: of the images.
            size: their height and width, as the model saw them.
        """

    def check(self, labels: Any) -> None:
        """Refuse labels that the model does not have, after the first pass."""

    def score(self, found: Tensor) -> float:
        """In percent, of what was read of all images."""

    def difference(self, after: Tensor, before: Tensor) -> tuple[Difference, float]:
        """In points, with a 95% interval over the images; and the p value of no difference."""

    def changed(self, after: Tensor, before: Tensor) -> float:
        """The share of the images of which something else is predicted."""


class ClassJudge:
    """A class for each image, judged by top-1.

    Args:
        labels: (N,) of all images.
    """

    measure = TOP1

    def __init__(self, labels: Tensor) -> None:
        self.labels, self._classes = labels, 0

    def read(self, output: Any, labels: object, size: object) -> Tensor:  # noqa: ARG002 - compared when all are read
        """(B,) the classes."""
        logits = check_logits(output)
        self._classes = logits.shape[1]
        return torch.where(logits.isfinite().all(dim=1), predicted_classes(logits), -1).cpu()

    def check(self, labels: Tensor) -> None:
        """The labels are classes of the model."""
        self.labels = check_labels(labels, self._classes)

    def score(self, found: Tensor) -> float:
        """Top-1."""
        return 100 * float((found == self.labels).double().mean())

    def difference(self, after: Tensor, before: Tensor) -> tuple[Difference, float]:
        """In top-1; p is of McNemar's exact test."""
        right = [(found == self.labels)[None] for found in (after, before)]
        return paired_difference(*right), mcnemar(*right).p

    def changed(self, after: Tensor, before: Tensor) -> float:
        """Images with another class."""
        return float((after != before).double().mean())


class PixelJudge:
    """A class for each pixel, judged by the mIoU: (B, 3 K + 1), the counts of each image and a digest of its mask."""

    measure = MIOU

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def read(self, output: Any, labels: Sequence[Tensor], size: object) -> Tensor:  # noqa: ARG002 - label maps have one
        """Counts at the label maps' own size, as ``evaluate`` makes them."""
        scores = pixel_scores(output)
        rows = []
        for each, target in zip(scores, labels, strict=True):
            counted = score_counts(each, target.to(each.device).long(), self.classes)
            if counted is None:
                rows.append(torch.full((3 * self.classes + 1,), -1))
                continue
            counts, mask = counted
            digest = hashlib.sha256(mask.to(torch.uint8).cpu().numpy().tobytes()).digest()[:7]
            rows.append(torch.cat([counts.flatten().cpu(), torch.tensor([int.from_bytes(digest)])]))
        return torch.stack(rows)

    def check(self, labels: Any) -> None:
        """Label maps were checked when they were read."""

    def score(self, found: Tensor) -> float:
        """MIoU over all images."""
        return self.measure.scores(self._counts(found), found)[0]

    def difference(self, after: Tensor, before: Tensor) -> tuple[Difference, float]:
        """In mIoU, over resampled images; p is that of the interval."""
        values = self.measure.values(torch.stack([self._counts(before), self._counts(after)]), before)
        difference = difference_of(self.measure.paired(values), 0)
        return difference, difference.p

    def changed(self, after: Tensor, before: Tensor) -> float:
        """Images any of whose pixels has another class."""
        return float((after[:, -1] != before[:, -1]).double().mean())

    def _counts(self, found: Tensor) -> Tensor:
        """(1, N, K, 3)."""
        return found[None, :, :-1].reshape(1, len(found), self.classes, 3)


class ObjectJudge:
    """The objects found in each image, judged by the mAP: (B, 100, 6), as ``DetectionEvaluation.found``.

    Rows without an object have the class -1. What mAP counts of an image is its prediction: for each class its boxes in
    the order of their scores, and which of them have an object at each threshold.

    Args:
        known: what is there in each of the images, in their order.
        classes: K.
    """

    measure = MAP

    def __init__(self, known: Sequence[KnownObjects], classes: int) -> None:
        self.objects, self.classes = [one.objects for one in known], classes

    def read(
        self, output: Sequence[Mapping[str, Tensor]], labels: Sequence[KnownObjects], size: tuple[int, int]
    ) -> Tensor:
        """Boxes in pixels of the files, the best 100."""
        rows = torch.zeros(len(output), MOST, 6)
        rows[..., 5] = -1
        for row, one, known in zip(rows, output, labels, strict=True):
            found = in_pixels_of_the_file(one, known.size, size)[:MOST]
            row[: len(found)] = found
            if not found.isfinite().all():
                row.fill_(-1)
        return rows

    def check(self, labels: Any) -> None:
        """Boxes were checked when they were read."""

    def score(self, found: Tensor) -> float:
        """MAP over all images."""
        boxes, there = self._packed(found)
        return self.measure.scores(boxes[None], there)[0]

    def difference(self, after: Tensor, before: Tensor) -> tuple[Difference, float]:
        """In mAP, over resampled images; p is that of the interval."""
        values = [self.measure.values(boxes[None], there) for boxes, there in map(self._packed, (before, after))]
        difference = difference_of(self.measure.paired(torch.stack(values)), 0)
        return difference, difference.p

    def changed(self, after: Tensor, before: Tensor) -> float:
        """Images of which mAP counts something else."""
        (one, _), (other, _) = self._packed(after), self._packed(before)
        return float((one[..., 5:] != other[..., 5:]).flatten(1).any(1).double().mean())

    def _packed(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """As ``packed``: (N, 100, 8) and (N, K)."""
        return packed([rows[rows[:, 5] >= 0] for rows in found], self.objects, self.classes)


def load_judged(
    data: Audited, model: nn.Module, *, limit: int | None, image_size: int | None, seed: int
) -> tuple[LoadedImages | LoadedWhole, Judge]:
    """Read images into memory, with what the model is judged by on them.

    Args:
        data: see ``audit``.
        model: says how images are prepared.
        limit: at most so many images.
        image_size: of the images in pixels; without it the model's own.
        seed: of the choice and the order.

    Raises:
        FoveateError: the data cannot be read or does not fit the model.
        Diverged: a weight of a detector is NaN or infinite.
    """
    if isinstance(data, SegmentationData | SegmentationSplit) or find_segmentation(data):
        maps = data if isinstance(data, SegmentationSplit) else open_segmentation(data)  # type: ignore[arg-type]  # a path
        loaded = load_maps(maps, model, limit=limit, image_size=image_size, seed=seed)
        return loaded, PixelJudge(len(maps.classes))
    boxes = isinstance(data, DetectionData | DetectionSplit) or find_detection(data)
    if isinstance(model, Detector) and boxes:
        check_finite(model)
        known = data if isinstance(data, DetectionSplit) else open_detection(data)  # type: ignore[arg-type]  # a path
        loaded = load_boxes(known, model, limit=limit, image_size=image_size, seed=seed)
        return loaded, ObjectJudge(loaded.labels, len(known.classes))
    if isinstance(model, Detector):
        raise FoveateError("this is a detector: audit it on images with boxes, as open_detection takes them")
    images = load_images(data, model, limit=limit, image_size=image_size, seed=seed)  # type: ignore[arg-type]  # says what boxes are
    return images, ClassJudge(images.labels)
