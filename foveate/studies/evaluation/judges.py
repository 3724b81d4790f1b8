"""What an audit looks at after each change: predictions of images, and how good they are, for each task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from foveate.data.division import sample
from foveate.data.segmentation import SegmentationData, SegmentationSplit
from foveate.errors import FoveateError
from foveate.networks.class_names import stored_names
from foveate.scores import check_labels, check_logits, pixel_scores, predicted_classes
from foveate.studies.comparison.measure import MIOU, TOP1, Measure
from foveate.studies.comparison.statistics import Difference, difference_of, mcnemar, paired_difference
from foveate.training.input.loaders import normalised
from foveate.training.tasks.segmentation_metrics import score_counts
from foveate.whole_images import WholeImage, resized

__all__ = ["ClassJudge", "Judge", "LoadedMaps", "PixelJudge", "load_maps"]


class Judge(Protocol):
    """What is read of a model's output, and compared."""

    @property
    def measure(self) -> Measure:
        """What the network is judged by."""

    def read(self, output: Any, labels: Any) -> Tensor:
        """(B, ...) whole numbers for the images of a batch; all below 0 where a score is NaN or infinite."""

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

    def read(self, output: Any, labels: Any) -> Tensor:  # noqa: ARG002 - compared when all are read
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

    def read(self, output: Any, labels: Sequence[Tensor]) -> Tensor:
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


@dataclass(frozen=True, eq=False)
class LoadedMaps:
    """Images with label maps in memory, those of one size beside each other, in random order.

    Args:
        name: of the data set.
        images: uint8 pixels (C, h, w) of each, as the network sees them.
        labels: (H, W) uint8 of each, in its own size.
        preparation: of the network.
    """

    name: str
    images: Sequence[Tensor]
    labels: Sequence[Tensor]
    preparation: WholeImage

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Normalised images of one size and their label maps, always in the same order; never one image alone."""
        start = 0
        while start < len(self):
            shape = self.images[start].shape
            alike = next((n for n in range(start, len(self)) if self.images[n].shape != shape), len(self)) - start
            count = alike if alike <= size + 1 else min(size, alike - 2)
            part = slice(start, start + count)
            pixels = torch.stack(list(self.images[part]))
            yield normalised(pixels, self.preparation.preprocess, device), list(self.labels[part])
            start += count


def load_maps(
    data: SegmentationData | SegmentationSplit,
    model: torch.nn.Module,
    *,
    limit: int | None,
    image_size: int | None,
    seed: int,
) -> LoadedMaps:
    """Read images with label maps into memory; those that are alone with their size are left out.

    Args:
        data: its validation part is read; or a part.
        model: says how images are prepared.
        limit: at most so many images.
        image_size: their shorter side; without it the model's own.
        seed: of the choice and the order.

    Raises:
        FoveateError: the model has other classes, no two images have one size, or a file cannot be read.
    """
    if limit is not None and limit < 1:
        raise FoveateError(f"limit {limit}: must be at least 1")
    part = data if isinstance(data, SegmentationSplit) else data.val
    names = stored_names(model, len(part.classes))
    if names and names != part.classes:
        raise FoveateError("the model's classes are not the data's in the same order: audit it on data of its classes")
    chosen = list(range(len(part)))
    if limit is not None and limit < len(part):
        chosen = sample(part.names, [0] * len(part), limit, seed)
    preparation = WholeImage.of(model, image_size)
    order = [chosen[n] for n in torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()]
    images = {index: resized(part.load(index), preparation.preprocess) for index in order}
    shapes = [tuple(images[index].shape) for index in order]
    kept = [index for index, shape in zip(order, shapes, strict=True) if shapes.count(shape) > 1]
    if not kept:
        raise FoveateError("an audit exchanges maps between images of one size, and no two of these have one")
    kept.sort(key=lambda index: shapes.index(tuple(images[index].shape)))  # a stable sort: the order stays random
    left = len(order) - len(kept)
    name = data.name + (f", without {left} images alone with their size" if left else "")
    targets = [torch.from_numpy(np.array(part.target(index))) for index in kept]
    return LoadedMaps(name, [images[index] for index in kept], targets, preparation)
