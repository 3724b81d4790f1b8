"""How good a detection network is: mean average precision as COCO counts it, by torchmetrics and faster-coco-eval.

Of each image the 100 objects with the highest scores count. An object that is ignored (a crowd, or difficult) is
neither missed nor wrongly found, as COCO has it for crowds. In the mask mAP neither is one whose mask is not known.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveate.data.detection.masks import InstanceMasks
from foveate.data.detection.split import Objects
from foveate.errors import FoveateError
from foveate.html import html_table
from foveate.io import JsonObject, write_csv
from foveate.training.tasks.average_precision import RECALLS, THRESHOLDS

__all__ = ["DetectionEvaluation", "measure_objects", "require_coco"]

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
        masks: of each image the masks of what was found; None where the model has none.
        mask_map: the mAP where masks are compared in the place of boxes; None where the model or the data have none.
        mask_map50: the same at the threshold .50 alone.
        mask_map75: the same at .75.
        mask_ap: (K, 2), as ``ap``.
    """

    map: float
    map50: float
    map75: float
    ap: Tensor = field(repr=False)
    found: tuple[Tensor, ...] = field(repr=False)
    objects: tuple[Objects, ...] = field(repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    masks: tuple[InstanceMasks, ...] | None = field(default=None, repr=False)
    mask_map: float | None = None
    mask_map50: float | None = None
    mask_map75: float | None = None
    mask_ap: Tensor | None = field(default=None, repr=False)

    curves: ClassVar[Mapping[str, str]] = {
        "train_loss": "training loss",
        "eval_map": "validation mAP, share",
        "eval_map50": "validation mAP50, share",
        "eval_mask_map": "validation mask mAP, share",
    }

    @property
    def headline(self) -> str:
        """The most important numbers, in a line."""
        text = f"mAP {100 * self.map:.1f}%, mAP50 {100 * self.map50:.1f}%"
        if self.mask_map is None or self.mask_map50 is None:
            return text
        return f"{text}, mask mAP {100 * self.mask_map:.1f}%, mask mAP50 {100 * self.mask_map50:.1f}%"

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

        With masks ``mask_ap`` and ``mask_ap50``, too.

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
        measured = {"ap": self.ap} | ({} if self.mask_ap is None else {"mask_ap": self.mask_ap})
        rows: list[JsonObject] = []
        for label, (name, (images, objects)) in enumerate(zip(names, self.counts.tolist(), strict=True)):
            row: JsonObject = {"class": str(name), "images": images, "objects": objects}
            for key, values in measured.items():
                ap, ap50 = values[label].tolist()
                row[key], row[f"{key}50"] = (None if math.isnan(value) else value for value in (ap, ap50))
            rows.append(row)
        return rows

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows of :meth:`per_class` as CSV, whole or not at all.

        Raises:
            FoveateError: the file cannot be written.
        """
        return write_csv(Path(path), self.per_class())

    def to_dict(self, classes: Sequence[str] | None = None) -> JsonObject:
        """Every metric as plain numbers, for JSON."""
        numbers = {name: getattr(self, name) for name in ("map", "map50", "map75")}
        if self.mask_map is not None:
            numbers |= {name: getattr(self, name) for name in ("mask_map", "mask_map50", "mask_map75")}
        return {**numbers, "images": len(self.objects), "classes": self.per_class(classes)}

    def _repr_html_(self) -> str:
        shares = {"mAP": self.map, "mAP50": self.map50, "mAP75": self.map75}
        masks = {"mask mAP": self.mask_map, "mask mAP50": self.mask_map50, "mask mAP75": self.mask_map75}
        shares |= {name: share for name, share in masks.items() if share is not None}
        rows = [("images", str(len(self.objects))), *((name, f"{share:.2%}") for name, share in shares.items())]
        return html_table(("metric", "value"), rows)


def measure_objects(
    found: Sequence[Tensor],
    objects: Sequence[Objects],
    classes: tuple[str, ...],
    masks: Sequence[InstanceMasks] | None = None,
) -> DetectionEvaluation:
    """Every metric from what was found and what is there.

    Args:
        found: of each image, as ``DetectionEvaluation.found``.
        objects: of each image.
        classes: names of the K classes.
        masks: those of ``found``; with them, and where the objects have masks, the mask mAP is counted, too.

    Raises:
        FoveateError: there is no image or no object, or the package that counts is not installed.
    """
    require_coco()
    if not any(bool((~one.ignored).any()) for one in objects):
        raise FoveateError("no image to evaluate on has an object that counts: mAP is of objects")
    boxes = _averaged(_precision(found, objects), len(classes), _met(found, objects))
    evaluation = DetectionEvaluation(
        map=boxes.all,
        map50=boxes.at50,
        map75=boxes.at75,
        ap=boxes.ap,
        found=tuple(found),
        objects=tuple(objects),
        classes=classes,
        masks=None if masks is None else tuple(masks),
    )
    if masks is None or not any(bool((one.masked & ~one.ignored).any()) for one in objects):
        return evaluation
    own = _averaged(_precision(found, objects, masks), len(classes), _met(found, objects))
    return replace(evaluation, mask_map=own.all, mask_map50=own.at50, mask_map75=own.at75, mask_ap=own.ap)


def _met(found: Sequence[Tensor], objects: Sequence[Objects]) -> list[int]:
    """The classes that are there or were found, in their order."""
    return sorted({int(label) for of in objects for label in of.labels} | {int(n) for of in found for n in of[:, 5]})


def _precision(
    found: Sequence[Tensor], objects: Sequence[Objects], masks: Sequence[InstanceMasks] | None = None
) -> Tensor:
    """(10, 101, classes that were met) by thresholds and recalls; -1 where a class has no object."""
    from torchmetrics.detection import MeanAveragePrecision  # imports for seconds

    # torchmetrics' own are rounded to float32, which COCO's are not: a recall of .1 would count as less than .1.
    exact: dict[str, Any] = {"iou_thresholds": THRESHOLDS.tolist(), "rec_thresholds": RECALLS.tolist()}
    # With "segm" alone torchmetrics leaves out the images without an object, and what was wrongly found there.
    kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox",) if masks is None else ("bbox", "segm")
    metric = MeanAveragePrecision(iou_type=kinds, backend=_BACKEND, extended_summary=True, **exact)
    for index, (of, there) in enumerate(zip(found, objects, strict=True)):
        known = {"labels": torch.from_numpy(there.labels), "boxes": torch.from_numpy(there.boxes)}
        given = {"labels": of[:, 5].long(), "boxes": of[:, :4], "scores": of[:, 4]}
        ignored = torch.from_numpy(there.ignored)
        if masks is not None:
            given["masks"] = torch.from_numpy(masks[index].array()).bool()
            known["masks"], unknown = _masks_there(there, masks[index].size)
            ignored = ignored | unknown
        metric.update([given], [{**known, "iscrowd": ignored.long()}])
    # Thresholds x recalls x classes that were met x sizes x most objects.
    name = "precision" if masks is None else "segm_precision"
    precision: Tensor = metric.compute()[name][:, :, :, 0, -1]
    return precision.double()


def _masks_there(there: Objects, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(n, H, W) bool, and which of them are not known and have the place of their box; those count as ignored."""
    unknown = ~there.masked
    masks = np.zeros((len(there), *size), np.bool_) if there.masks is None else there.masks.array() > 0
    for index in unknown.nonzero()[0]:
        left, top, right, bottom = there.boxes[index]
        masks[index, int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = True
    return torch.from_numpy(masks), torch.from_numpy(unknown)


class _Averaged(NamedTuple):
    all: float
    at50: float
    at75: float
    ap: Tensor


def _averaged(precision: Tensor, classes: int, met: Sequence[int]) -> _Averaged:
    ap = torch.full((classes, 2), float("nan"), dtype=torch.float64)
    for place, label in enumerate(met):
        own = precision[:, :, place]
        if bool((own > -1).any()):
            ap[label] = torch.stack([own.mean(), own[0].mean()])
    at75 = precision[5][precision[5] > -1].mean()
    return _Averaged(float(ap[:, 0].nanmean()), float(ap[:, 1].nanmean()), float(at75), ap)
