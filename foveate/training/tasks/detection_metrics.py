"""How good a detection network is: mean average precision as COCO counts it, by torchmetrics and faster-coco-eval.

Of each image the 100 objects with the highest scores count. An object that is ignored (a crowd, or difficult) is
neither missed nor wrongly found, as COCO has it for crowds.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.data.detection.split import Objects
from foveate.errors import FoveateError
from foveate.html import html_table
from foveate.io import JsonObject, write_csv
from foveate.training.input.sampler import Batch
from foveate.training.tasks.average_precision import RECALLS, THRESHOLDS

__all__ = ["MOST", "DetectionEvaluation", "collect_objects", "gathered", "measure_objects", "require_coco"]

MOST = 100  # objects of an image that count
_BACKEND = "faster_coco_eval"


def require_coco() -> None:
    """Make sure that mAP can be computed, before anything is trained.

    Raises:
        FoveateError: its package is not installed.
    """
    if importlib.util.find_spec(_BACKEND) is None:
        raise FoveateError("mAP needs the package faster-coco-eval: pip install 'foveate[detection]'")


@dataclass(frozen=True, eq=False)
class DetectionEvaluation:
    """What a model finds on N images of K classes, and how good that is.

    Args:
        map: mean average precision over thresholds of .50 to .95 of intersection over union and over the classes that
            have objects, 0 to 1.
        map50: the same at the threshold .50 alone.
        map75: the same at .75.
        ap: (K, 2) float64, average precision of each class over all thresholds, and at .50; NaN where the class has no
            object.
        found: of each image (n, 6): left, top, right and bottom in pixels of its file, score, class.
        objects: of each image what is there.
        classes: names of the K classes.
    """

    map: float
    map50: float
    map75: float
    ap: Tensor = field(repr=False)
    found: tuple[Tensor, ...] = field(repr=False)
    objects: tuple[Objects, ...] = field(repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)

    curves: ClassVar[Mapping[str, str]] = {
        "train_loss": "training loss",
        "eval_map": "validation mAP, share",
        "eval_map50": "validation mAP50, share",
    }

    @property
    def headline(self) -> str:
        """The most important numbers, in a line."""
        return f"mAP {100 * self.map:.1f}%, mAP50 {100 * self.map50:.1f}%"

    @cached_property
    def counts(self) -> Tensor:
        """(K, 2) int64: images that have an object of each class, and its objects, without those that are ignored."""
        total = torch.zeros(len(self.ap), 2, dtype=torch.int64)
        for one in self.objects:
            there = torch.from_numpy(one.labels[~one.ignored]).bincount(minlength=len(self.ap))
            total += torch.stack([(there > 0).long(), there], 1)
        return total

    def per_class(self, classes: Sequence[str] | None = None) -> list[JsonObject]:
        """A row for each class: name, images that have it, its objects, AP and AP50; None where there is no object.

        Args:
            classes: their names; without them those of :attr:`classes`.

        Raises:
            FoveateError: there are more or fewer names than classes.
        """
        names = classes or self.classes or tuple(map(str, range(len(self.ap))))
        if len(names) != len(self.ap):
            raise FoveateError(
                f"{len(names)} class names for {len(self.ap)} classes: leave them out for the data's own"
            )
        rows = zip(names, self.counts.tolist(), self.ap.tolist(), strict=True)
        return [
            {
                "class": str(name),
                "images": images,
                "objects": objects,
                "ap": ap if objects else None,
                "ap50": ap50 if objects else None,
            }
            for name, (images, objects), (ap, ap50) in rows
        ]

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows of :meth:`per_class` as CSV, whole or not at all.

        Raises:
            FoveateError: the file cannot be written.
        """
        return write_csv(Path(path), self.per_class())

    def to_dict(self, classes: Sequence[str] | None = None) -> JsonObject:
        """Every metric as plain numbers, for JSON."""
        numbers = {name: getattr(self, name) for name in ("map", "map50", "map75")}
        return {**numbers, "images": len(self.objects), "classes": self.per_class(classes)}

    def _repr_html_(self) -> str:
        shares = {"mAP": self.map, "mAP50": self.map50, "mAP75": self.map75}
        rows = [("images", str(len(self.objects))), *((name, f"{share:.2%}") for name, share in shares.items())]
        return html_table(("metric", "value"), rows)


def collect_objects(forward: Callable[[Any], Any], batches: Iterable[Batch]) -> tuple[list[Tensor], list[Objects]]:
    """What a model finds in each image, (n, 6) in pixels of its file, and what is there; without gradients.

    Args:
        forward: what the model gives for the inputs of a batch.
        batches: of ``BoxLoader``.
    """
    found: list[Tensor] = []
    objects: list[Objects] = []
    with torch.no_grad():
        for inputs, targets in batches:
            for one, target in zip(forward(inputs), targets, strict=True):
                found.append(in_pixels_of_the_file(one, target.size, target.input_size)[:MOST])
                objects.append(target.objects)
    return found, objects


def in_pixels_of_the_file(one: Mapping[str, Tensor], size: tuple[int, int], input_size: tuple[int, int]) -> Tensor:
    """(n, 6) on the CPU: left, top, right, bottom, score, class, the highest score first.

    Args:
        one: what a detector found in one image.
        size: height and width of the file.
        input_size: height and width of what the detector saw.
    """
    scale = one["boxes"].new_tensor([size[1] / input_size[1], size[0] / input_size[0]] * 2)
    columns = [one["boxes"] * scale, one["scores"][:, None], one["labels"][:, None]]
    rows = torch.cat([column.float() for column in columns], 1).cpu()
    return rows[rows[:, 4].argsort(descending=True, stable=True)]


def gathered(
    found: list[Tensor], objects: list[Objects], gather: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], list[Objects]]:
    """The same of all processes, in the order of the images.

    Args:
        found: of this process's images.
        objects: of them.
        gather: from rows for the images of this process to rows for all images.
    """
    there = [
        torch.cat(
            [
                torch.from_numpy(one.boxes),
                torch.from_numpy(one.labels)[:, None],
                torch.from_numpy(one.ignored)[:, None],
            ],
            1,
        )
        for one in objects
    ]
    every = []
    for rows in (found, there):
        width = 6
        counts = gather(torch.tensor([len(of) for of in rows], dtype=torch.int64))
        padded = torch.zeros(len(rows), max(1, int(counts.max())), width)
        for place, of in zip(padded, rows, strict=True):
            place[: len(of)] = of
        whole = gather(padded)
        every.append([of[:count] for of, count in zip(whole, counts.tolist(), strict=True)])
    known = [Objects(of[:, :4].numpy(), of[:, 4].long().numpy(), of[:, 5].bool().numpy()) for of in every[1]]
    return every[0], known


def measure_objects(
    found: Sequence[Tensor], objects: Sequence[Objects], classes: tuple[str, ...]
) -> DetectionEvaluation:
    """Every metric from what was found and what is there.

    Raises:
        FoveateError: there is no image or no object, or the package that counts is not installed.
    """
    require_coco()
    from torchmetrics.detection import MeanAveragePrecision  # imports for seconds

    if not any(bool((~one.ignored).any()) for one in objects):
        raise FoveateError("no image to evaluate on has an object that counts: mAP is of objects")
    # torchmetrics' own are rounded to float32, which COCO's are not: a recall of .1 would count as less than .1.
    exact = {"iou_thresholds": THRESHOLDS.tolist(), "rec_thresholds": RECALLS.tolist()}
    metric = MeanAveragePrecision(backend=_BACKEND, extended_summary=True, **exact)
    metric.update(
        [{"boxes": of[:, :4], "scores": of[:, 4], "labels": of[:, 5].long()} for of in found],
        [
            {
                "boxes": torch.from_numpy(of.boxes),
                "labels": torch.from_numpy(of.labels),
                "iscrowd": torch.from_numpy(of.ignored).long(),
            }
            for of in objects
        ],
    )
    # Thresholds x recalls x classes that were met x sizes x most objects; -1 where a class has no object.
    values = metric.compute()
    precision = values["precision"][:, :, :, 0, -1].double()
    met = sorted({int(label) for of in objects for label in of.labels} | {int(n) for of in found for n in of[:, 5]})
    ap = torch.full((len(classes), 2), float("nan"), dtype=torch.float64)
    for place, label in enumerate(met):
        own = precision[:, :, place]
        if bool((own > -1).any()):
            ap[label] = torch.stack([own.mean(), own[0].mean()])
    return DetectionEvaluation(
        map=float(ap[:, 0].nanmean()),
        map50=float(ap[:, 1].nanmean()),
        map75=float(precision[5][precision[5] > -1].mean()),
        ap=ap,
        found=tuple(found),
        objects=tuple(objects),
        classes=classes,
    )
