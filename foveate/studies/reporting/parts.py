"""What a report shows besides tables of scores, for each task: tables of classes, pictures, audits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.data.detection import DetectionData
from foveate.data.segmentation import SegmentationData
from foveate.data.split import ImageData
from foveate.errors import FoveateError
from foveate.explanations.mask_overlay import IGNORED, draw_boxes, draw_classes, legend
from foveate.prediction.segmentation import predict_masks
from foveate.studies.comparison.differences.mean_average_precision import unpacked
from foveate.studies.comparison.measure import MAP, MIOU, TOP1
from foveate.studies.comparison.results import Comparison
from foveate.studies.evaluation.audit import audit
from foveate.studies.evaluation.audit_result import Audit
from foveate.studies.evaluation.in_memory import SharedImages
from foveate.studies.reporting.class_results import class_table, confusion_table, score_table
from foveate.studies.reporting.html import saved_picture
from foveate.studies.reporting.report_images import Gallery, changes, confusions, looked_at, spread_over_classes
from foveate.studies.reporting.tables import PlanTable
from foveate.surgery.insert import plan_of
from foveate.training.tasks.average_precision import average_precision
from foveate.training.tasks.choose import OpenedData
from foveate.training.tasks.segmentation_metrics import class_ious

__all__ = ["Parts", "parts_of"]

_SIDE = 256  # pixels of a picture's longer side
_SURE = 0.5  # score of a box that is drawn


@dataclass(frozen=True)
class Parts:
    """What a report shows.

    Args:
        classes: tables of the classes, each with a hint.
        galleries: headings, each with captions and pictures.
        audits: by plan.
        notes: what is not shown, and why.
    """

    classes: Sequence[tuple[PlanTable, str]]
    galleries: Sequence[Gallery]
    audits: Mapping[str, Audit]
    notes: tuple[str, ...] = ()


def parts_of(
    comparison: Comparison, data: Any, shown: Sequence[str], images: int, audited: int, overlays: Path
) -> Parts:
    """What there is to show of a comparison's task.

    Args:
        comparison: with networks and what its runs kept.
        data: what it was made on.
        shown: the plans whose classes and images are shown, the first one first.
        images: how many images are shown of each kind.
        audited: at most so many images for an audit; 0: none.
        overlays: a folder for pictures.
    """
    return _PARTS[comparison.measure.task](comparison, data, shown, images, audited, overlays)


def _of_classes(
    comparison: Comparison, data: ImageData, shown: Sequence[str], images: int, audited: int, overlays: Path
) -> Parts:
    matrix = confusions(comparison, data.classes, shown)
    galleries = [
        *looked_at(comparison, data, spread_over_classes(data, images), overlays),
        *([matrix] if matrix else []),
        *changes(comparison, data, shown, images),
    ]
    return Parts(_class_tables(comparison, data.classes, shown), galleries, _audits(comparison, data, audited))


def _audits(comparison: Comparison, data: Any, audited: int) -> dict[str, Audit]:
    given = SharedImages.of(data) if isinstance(data, ImageData) else data
    return {
        label: audit(model, given, limit=audited, image_size=comparison.recipe.image_size)
        for label, model in comparison.models.items()
        if audited and plan_of(model)
    }


def _class_tables(comparison: Comparison, classes: Sequence[str], shown: Sequence[str]) -> list[tuple[PlanTable, str]]:
    """The table of the classes, and that of what is confused."""
    if comparison.labels is None:
        return []
    predictions = {label: comparison.predictions[label] for label in shown}
    table, left_out = class_table(classes, comparison.labels, predictions)
    hint = (
        "The share of each class's images that is predicted right, in percent, as the mean of the seeds; below it the "
        f"difference to the first plan, in points. {left_out}{_more(comparison, shown)}"
    )
    found = [(table, hint.strip())]
    pairs = confusion_table(classes, comparison.labels, predictions)
    if pairs:
        found.append((pairs, "The pairs that are confused most often: validation images, as the mean of the seeds."))
    return found


def _more(comparison: Comparison, shown: Sequence[str]) -> str:
    every = len(comparison.setup.runs)
    return f" The first {len(shown)} of {every} plans." if every > len(shown) else ""


def _of_pixels(
    comparison: Comparison,
    data: SegmentationData,
    shown: Sequence[str],
    images: int,
    audited: int,
    overlays: Path,
) -> Parts:
    worst = list(_worst(comparison, data, shown, images, overlays))
    return _dense(comparison, data, shown, audited, worst)


def _of_boxes(
    comparison: Comparison, data: DetectionData, shown: Sequence[str], images: int, audited: int, overlays: Path
) -> Parts:
    worst = list(_worst_boxes(comparison, data, shown, images, overlays))
    return _dense(comparison, data, shown, audited, worst)


def _dense(
    comparison: Comparison, data: OpenedData, shown: Sequence[str], audited: int, galleries: Sequence[Gallery]
) -> Parts:
    """What segmentation and detection have alike."""
    table, left_out = score_table(comparison, data.classes, shown)
    hint = (
        f"The {comparison.measure.of_class} of each class over all validation images, in percent, as the mean of the "
        f"seeds; below it the difference to the first plan, in points. {left_out}{_more(comparison, shown)}"
    )
    said: tuple[str, ...] = ()
    try:
        audits = _audits(comparison, data, audited)
    except FoveateError as error:  # such as no two images of one size
        audits, said = {}, (f"There is no audit: {error}.",)
    return Parts([(table, hint.strip())], galleries, audits, said)


def _worst_boxes(
    comparison: Comparison, data: DetectionData, shown: Sequence[str], images: int, overlays: Path
) -> Iterator[Gallery]:
    """The images with the lowest mAP of their own: their objects, and what the first seed's network of each plan finds.

    The boxes are those that the runs kept.
    """
    objects = comparison.objects
    if objects is None or not images:
        return
    each = torch.eye(len(objects))  # one image at a time
    own = [
        average_precision(unpacked(of_seed, objects), each).nanmean(1)
        for label in shown
        for of_seed in comparison.boxes[label]
    ]
    per_image = torch.stack(own).mean(0)
    # An image without an object has no mAP.
    order = [index for index in per_image.argsort().tolist() if not per_image[index].isnan()][:images]
    gallery: list[tuple[str, bytes]] = []
    for k, index in enumerate(order):
        small = data.val.load(index).convert("RGB")
        width = small.width
        small.thumbnail((_SIDE, _SIDE))
        scale = small.width / width
        there = data.val.objects[index]
        every = [(torch.from_numpy(there.boxes), torch.from_numpy(there.labels))]
        for label in shown:
            rows = comparison.boxes[label][0, index]
            sure = rows[(rows[:, 5] >= 0) & (rows[:, 4] >= _SURE)]
            every.append((sure[:, :4], sure[:, 5].long()))
        drawn = [small, *(draw_boxes(small, boxes * scale, labels) for boxes, labels in every)]
        present = sorted(set().union(*(labels.tolist() for _, labels in every)))
        sheet = _beside(drawn, legend(present, data.classes, len(drawn) * (small.width + 4)))
        drawing = saved_picture(sheet, overlays / f"worst_{k}.png")
        names = ", ".join(("image", "objects", *shown))
        gallery.append((f"{data.val.names[index]}, mAP {100 * float(per_image[index]):.1f}%: {names}", drawing))
    if gallery:
        how = f"of each plan the boxes of its first seed with a score of {_SURE:g} or more"
        yield (
            f"The worst images: those with the lowest mAP of their own, as the mean of plans and seeds; {how}",
            gallery,
        )


def _worst(
    comparison: Comparison, data: SegmentationData, shown: Sequence[str], images: int, overlays: Path
) -> Iterator[Gallery]:
    """The images with the lowest mIoU of their own, and what the first seed's network of each plan says of them."""
    per_image = torch.stack([class_ious(comparison.counts[label]).nanmean(-1) for label in shown]).mean((0, 1))
    # An image all of whose pixels are ignored has no class, and so no mIoU.
    order = [index for index in per_image.argsort().tolist() if not per_image[index].isnan()][:images]
    shown = [label for label in shown if label in comparison.models]
    if not order or not shown:
        return
    pictures = [data.val.load(index) for index in order]
    masks = {
        label: list(predict_masks(comparison.models[label], pictures, image_size=comparison.recipe.image_size))
        for label in shown
    }
    gallery: list[tuple[str, bytes]] = []
    for k, index in enumerate(order):
        small = pictures[k].convert("RGB")
        small.thumbnail((_SIDE, _SIDE))
        target = torch.from_numpy(np.array(data.val.target(index)))
        every = [target, *(masks[label][k].classes for label in shown)]
        drawn = [small, *(draw_classes(small, classes) for classes in every)]
        there = sorted(set().union(*(classes.flatten().tolist() for classes in every)) - {IGNORED})
        sheet = _beside(drawn, legend(there, data.classes, len(drawn) * (small.width + 4)))
        drawing = saved_picture(sheet, overlays / f"worst_{k}.png")
        names = ", ".join(("image", "label map", *shown))
        gallery.append((f"{data.val.names[index]}, mIoU {100 * float(per_image[index]):.1f}%: {names}", drawing))
    yield "The worst images: those with the lowest mIoU of their own, as the mean of plans and seeds", gallery


def _beside(pictures: Sequence[Image.Image], below: Image.Image) -> Image.Image:
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + 4), height + 6 + below.height), "white")
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k * (width + 4), 0))
    sheet.paste(below, (0, height + 6))
    return sheet


_PARTS: Mapping[str, Callable[[Comparison, Any, Sequence[str], int, int, Path], Parts]] = {
    TOP1.task: _of_classes,
    MIOU.task: _of_pixels,
    MAP.task: _of_boxes,
}
