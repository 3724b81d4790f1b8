"""What plans are compared by, for each task: the one place that knows it.

A run keeps for each validation image what its score is made of. A measure says what that is, how the score comes from
it, what each image adds to the score (of which the score is the mean), and what the score is called in tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from foveate.errors import FoveateError, near
from foveate.studies.comparison.differences.mean_average_precision import image_parts, packed, resampled_map, unpacked
from foveate.studies.comparison.miou import paired_values, seed_values
from foveate.studies.comparison.statistics import McNemar, Paired, accuracy, bootstrap_interval, mcnemar, paired
from foveate.training.tasks.average_precision import average_precision
from foveate.training.tasks.segmentation_metrics import class_ious

__all__ = ["MAP", "MIOU", "TOP1", "MeanAP", "MeanIoU", "Measure", "TopOne", "measure_of"]

_SHARES = {"top1", "top5", "macro_f1", "ece", "miou", "pixel_accuracy", "map", "map50", "map75"}


@dataclass(frozen=True)
class Measure:
    """What plans are compared by.

    Args:
        task: what the networks are trained for, as ``Task.name``.
        key: the score's name among those of an evaluation, and in tables.
        name: in sentences: "points of top-1".
        column: heading in tables, in percent.
        noun: what the score is, on axes and in headings.
        second: another score that tables show, and its heading in a terminal.
        second_heading: on a page.
        note: what must be said beside the numbers, or "".
        added: how many images the intervals count beside the real ones.
    """

    task: str
    key: str
    name: str
    column: str
    noun: str
    second: tuple[str, str]
    second_heading: str
    added: int
    note: str = ""

    draws: ClassVar[int] = 2_000  # of seeds and images
    of_class: ClassVar[str] = ""  # what each class has of it

    @property
    def heading(self) -> str:
        """``column`` as the heading of a page."""
        return _capital(self.column)

    @property
    def title(self) -> str:
        """``noun`` at the start of a sentence."""
        return _capital(self.noun)

    @property
    def short(self) -> str:
        """``noun`` in a word."""
        return self.noun.rpartition(" ")[2]

    @property
    def short_title(self) -> str:
        """``short`` at the start of a sentence."""
        return _capital(self.short)

    @property
    def name_title(self) -> str:
        """``name`` at the start of a sentence."""
        return _capital(self.name)

    @property
    def history(self) -> str:
        """The score's column in ``summary.csv``, 0 to 1."""
        return f"eval_{self.key}"

    def in_percent(self, name: str) -> bool:
        """Whether a number of an evaluation is a share, which tables show in percent."""
        return name in _SHARES

    def outputs(self, evaluation: Any) -> tuple[Tensor, Tensor]:
        """What a run keeps of each image: its predictions, and labels where these are compared one by one."""
        raise NotImplementedError

    def values(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """What each image adds to the score: (S, N), bool or float64, from what ``outputs`` gave for each seed."""
        raise NotImplementedError

    def of_images(self, predictions: Mapping[str, Tensor], labels: Tensor) -> dict[str, Any]:
        """The fields of ``Comparison`` that hold what each plan's runs kept."""
        raise NotImplementedError

    def scores(self, predictions: Tensor, labels: Tensor) -> tuple[float, ...]:
        """The score of each seed in percent, from (S, N, ...)."""
        raise NotImplementedError

    def paired(self, values: Tensor) -> Paired:
        """Differences to the first row of (1 + K, S, N)."""
        raise NotImplementedError

    def bootstrap(
        self, predictions: Mapping[str, Tensor], baseline: str, labels: Tensor
    ) -> dict[str, tuple[float, float]]:
        """For each plan the 95% interval of its difference, in points, when seeds and images are drawn again.

        Drawn images are the same for every drawn seed and for all plans; each score is counted anew.
        """
        shape = predictions[baseline].shape[:2]
        random = np.random.default_rng(0)
        of_images, of_seeds = (
            torch.from_numpy(random.multinomial(count, np.full(count, 1 / count), self.draws)).double()
            for count in (shape[1], shape[0])
        )
        runs = {label: self.resampled(of, labels, of_images) for label, of in predictions.items()}
        found = {}
        base = runs.pop(baseline)
        for label, of_runs in runs.items():
            drawn = (of_seeds / shape[0] * (of_runs - base)).sum(1)
            low, high = np.quantile(drawn.numpy(), [0.025, 0.975])
            found[label] = 100 * float(low), 100 * float(high)
        return found

    def resampled(self, predictions: Tensor, labels: Tensor, times: Tensor) -> Tensor:
        """(draws, S) float64, the score of each seed with each image as often as ``times`` (draws, N) says."""
        raise NotImplementedError

    def class_scores(self, predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """``of_class``, (S, K) float64, NaN where it is undefined; and how many images have each class, (K,)."""
        raise NotImplementedError

    def mcnemar(self, predictions: Tensor, baseline: Tensor, labels: Tensor) -> McNemar | None:
        """McNemar's test on all images of all seeds together; None where an image is neither right nor wrong."""
        return None

    def classes_in(self, labels: Tensor) -> int | None:
        """Of how many classes the images are, where each has one."""
        return None


class TopOne(Measure):
    """Top-1 accuracy; predictions and labels are classes, (N,) int32."""

    def outputs(self, evaluation: Any) -> tuple[Tensor, Tensor]:
        """The classes."""
        return evaluation.predictions.to(torch.int32), evaluation.labels.to(torch.int32)

    def values(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Whether an image is right."""
        return predictions == labels

    def of_images(self, predictions: Mapping[str, Tensor], labels: Tensor) -> dict[str, Any]:
        """Predictions, labels, and where they are equal."""
        correct = {label: of == labels for label, of in predictions.items()}
        return {"correct": correct, "predictions": predictions, "labels": labels}

    def scores(self, predictions: Tensor, labels: Tensor) -> tuple[float, ...]:
        """The share that is right."""
        return tuple(accuracy(predictions == labels))

    def paired(self, values: Tensor) -> Paired:
        """See ``statistics``."""
        return paired(values.numpy())

    def bootstrap(
        self, predictions: Mapping[str, Tensor], baseline: str, labels: Tensor
    ) -> dict[str, tuple[float, float]]:
        """See ``statistics``."""
        right = {label: of == labels for label, of in predictions.items()}
        base = right.pop(baseline)
        return {label: bootstrap_interval(of, base) for label, of in right.items()}

    def mcnemar(self, predictions: Tensor, baseline: Tensor, labels: Tensor) -> McNemar | None:
        """See ``statistics``."""
        return mcnemar(predictions == labels, baseline == labels)

    def classes_in(self, labels: Tensor) -> int | None:
        """Those that are there."""
        return len(set(labels.tolist())) or None


class MeanIoU(Measure):
    """mIoU; predictions are the counts (N, K, 3) of ``SegmentationEvaluation``, and there are no labels."""

    of_class = "intersection over union"

    def outputs(self, evaluation: Any) -> tuple[Tensor, Tensor]:
        """The counts, and no labels."""
        return evaluation.counts, torch.empty(0, dtype=torch.int32)

    def values(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """See ``miou``."""
        return seed_values(predictions)

    def of_images(self, predictions: Mapping[str, Tensor], labels: Tensor) -> dict[str, Any]:
        """The counts."""
        return {"correct": {}, "counts": predictions}

    def scores(self, predictions: Tensor, labels: Tensor) -> tuple[float, ...]:
        """The mean over the classes of what is counted over all images."""
        return tuple(100 * float(of_seed.nanmean()) for of_seed in class_ious(predictions.sum(1)))

    def class_scores(self, predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Counted over all images."""
        return class_ious(predictions.sum(1)), (predictions[0, ..., 2] > 0).sum(0)

    def paired(self, values: Tensor) -> Paired:
        """See ``miou``."""
        return paired_values(values)

    def resampled(self, predictions: Tensor, labels: Tensor, times: Tensor) -> Tensor:
        """From the sums of the drawn images' counts."""
        found = []
        for of_seed in predictions.double():
            total = (times @ of_seed.flatten(1)).unflatten(1, of_seed.shape[1:])
            found.append(class_ious(total).nanmean(-1).nan_to_num())  # 0 of a draw without a pixel that counts
        return torch.stack(found, 1)


class MeanAP(Measure):
    """mAP; predictions are boxes with what became of them, (N, 100, 8), labels the objects of each class, (N, K)."""

    draws = 1_000
    of_class = "average precision"

    def outputs(self, evaluation: Any) -> tuple[Tensor, Tensor]:
        """See ``mean_average_precision``."""
        return packed(evaluation.found, evaluation.objects, len(evaluation.ap))

    def values(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """See ``mean_average_precision``."""
        return torch.stack([image_parts(unpacked(of_seed, labels)) for of_seed in predictions])

    def of_images(self, predictions: Mapping[str, Tensor], labels: Tensor) -> dict[str, Any]:
        """The boxes and the objects."""
        return {"correct": {}, "boxes": predictions, "objects": labels}

    def scores(self, predictions: Tensor, labels: Tensor) -> tuple[float, ...]:
        """The mean over the classes that have objects."""
        return tuple(100 * float(of_seed.nanmean()) for of_seed in self.class_scores(predictions, labels)[0])

    def class_scores(self, predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Over all images."""
        every = torch.ones(1, predictions.shape[1])
        found = [average_precision(unpacked(of_seed, labels), every)[0] for of_seed in predictions]
        return torch.stack(found), (labels > 0).sum(0)

    def paired(self, values: Tensor) -> Paired:
        """See ``miou``."""
        return paired_values(values)

    def resampled(self, predictions: Tensor, labels: Tensor, times: Tensor) -> Tensor:
        """See ``mean_average_precision``."""
        return torch.stack([resampled_map(unpacked(of_seed, labels), times) for of_seed in predictions], 1)


def _capital(text: str) -> str:
    """At the start of a sentence; what has capitals of its own, as mIoU has, stays."""
    return text if any(letter.isupper() for letter in text.split()[0]) else text[0].upper() + text[1:]


_NOTE = (
    " The mIoU is counted over all images together; each image's part in it is linearised, which is what resampling "
    "images gives to first order."
)
TOP1 = TopOne("classification", "top1", "top-1", "top-1 %", "top-1 accuracy", ("macro_f1", "F1 %"), "Macro-F1 %", 2)
MIOU = MeanIoU(
    "segmentation", "miou", "mIoU", "mIoU %", "mIoU", ("pixel_accuracy", "pixels %"), "Pixel accuracy %", 0, _NOTE
)
_NOTE_MAP = (
    " The mAP puts the boxes of all images into one order; an image's part in it is how it changes without the image "
    "(the jackknife), which is what resampling images gives to first order."
)
MAP = MeanAP("detection", "map", "mAP", "mAP %", "mAP", ("map50", "mAP50 %"), "mAP50 %", 0, _NOTE_MAP)
_MEASURES: Mapping[str, Measure] = {measure.task: measure for measure in (TOP1, MIOU, MAP)}


def measure_of(task: str) -> Measure:
    """What plans are compared by in a task.

    Raises:
        FoveateError: plans are not compared in it.
    """
    if task not in _MEASURES:
        raise FoveateError(f"plans cannot be compared in {task!r}; {near(task, _MEASURES)}")
    return _MEASURES[task]
