"""Detection: boxes and classes of the objects in an image, measured by mean average precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.data.detection import DetectionData, DetectionSplit
from foveate.data.detection.masks import require_masks
from foveate.dense import Detector, create_detector
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.training.context import RunContext
from foveate.training.input.detection import DetectionPipeline
from foveate.training.input.sampler import Batch
from foveate.training.recipes.recipe import Recipe
from foveate.training.tasks.collected_objects import collect_objects, gathered
from foveate.training.tasks.dense import decoder_of, fit_to_classes, for_classification
from foveate.training.tasks.detection_metrics import (
    DetectionEvaluation,
    measure_objects,
    require_coco,
)
from foveate.whole_images import WholeImage

__all__ = ["Detection", "DetectionObjective", "InstanceSegmentation"]


class DetectionObjective:
    """The sum of the losses that a detector gives, each averaged as torchvision does it: over the boxes of a batch."""

    def images(self) -> contextlib.AbstractContextManager[None]:
        """Nothing changes the images."""
        return contextlib.nullcontext()

    def loss(self, scores: Mapping[str, Tensor], labels: object) -> Tensor:
        """() of a batch.

        Args:
            scores: what a detector gives in training mode.
            labels: not used: the detector was given them.
        """
        return torch.stack([loss.float() for loss in scores.values()]).sum()


class Detection:
    """Boxes and classes of objects."""

    name = "detection"
    columns: tuple[str, ...] = ("epoch", "train_loss", "eval_map", "eval_map50", "lr", "seconds", "images_per_second")
    best = "eval_map"

    def create(self, name: str, data: DetectionData, pretrained: bool) -> nn.Module:
        """By ``create_detector``, Faster R-CNN on the trunk of that name."""
        return create_detector(name, classes=data.classes, pretrained=pretrained)

    def strata(self, part: DetectionSplit) -> Sequence[int]:
        """All images are alike."""
        return [0] * len(part)

    def check(self, recipe: Recipe, has_teacher: bool) -> None:
        """Refuse what is for other tasks, and say now if nothing could be measured later.

        Raises:
            FoveateError: the recipe mixes images, distorts them, has another loss or changes a classifier, or there is
                a teacher; or the package that computes mAP is not installed.
        """
        asked = {
            **for_classification(recipe, has_teacher),
            f"loss={recipe.loss!r}": recipe.loss != "cross_entropy",
            "label_smoothing": recipe.label_smoothing > 0,
        }
        wanted = [name for name, wants in asked.items() if wants]
        if wanted:
            raise FoveateError(
                f"{wanted[0]} does not go with detection, and this data has boxes: leave it out (the losses are the "
                "detector's own; augmentation is 'none', 'flip' or 'standard')"
            )
        require_coco()

    def adapt(self, model: nn.Module, data: DetectionData, recipe: Recipe, say: Callable[[str], None]) -> Preprocess:
        """Compare the model with the data's classes, and write into it how images are prepared and the classes' names.

        Raises:
            FoveateError: the model is no detector, has other classes, or learns from masks, which the data lack.
        """
        if not isinstance(model, Detector):
            raise FoveateError(
                f"this data has boxes, and {type(model).__name__} is not a detector: build one with create_detector("
                f"NAME, classes={len(data.classes)})"
            )
        _check_masks(model, data, say)
        preprocess = WholeImage.of(model, recipe.image_size).preprocess
        fit_to_classes(model, model.num_classes, data.classes, recipe, preprocess, "create_detector")
        say(f"images are {preprocess.size[0]} pixels on their shorter side")
        return preprocess

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """What reads the trunk's feature maps."""
        return decoder_of(model, "create_detector")

    def pipeline(
        self, model: nn.Module, data: DetectionData, preprocess: Preprocess, context: RunContext
    ) -> DetectionPipeline:
        """Images with their boxes."""
        head = self.head(model) if context.recipe.freeze == "trunk" else ()
        return DetectionPipeline(model, data, preprocess, context, head)

    def objective(self, model: nn.Module, recipe: Recipe, *, cached: bool, has_teacher: bool) -> DetectionObjective:
        """The detector's own losses."""
        return DetectionObjective()

    def mixing(self, recipe: Recipe, classes: int) -> None:
        """Images are not mixed."""

    def evaluate(
        self,
        forward: Callable[[Any], Any],
        batches: Iterable[Batch],
        gather: Callable[[Tensor], Tensor],
        classes: tuple[str, ...],
    ) -> DetectionEvaluation:
        """Mean average precision and the rest."""
        found, objects, masks = gathered(collect_objects(forward, batches), gather)
        return measure_objects(found, objects, classes, masks)

    def row(self, evaluation: DetectionEvaluation) -> dict[str, float]:
        """The mAP over all thresholds and at .50."""
        return {"eval_map": evaluation.map, "eval_map50": evaluation.map50}

    def line(self, row: Mapping[str, float]) -> str:
        """The mAP over all thresholds and at .50."""
        return f"mAP {row['eval_map']:.4f}  mAP50 {row['eval_map50']:.4f}"

    def notes(self, evaluation: DetectionEvaluation) -> tuple[str, ...]:
        """Whether anything was found at all."""
        if evaluation.map50 > 0:
            return ()
        text = (
            "no object was found where one is (mAP50 is 0): start from pretrained weights, train longer, or look at "
            "the boxes (foveate data check) and at the detector's anchor, the side of its smallest boxes in pixels"
        )
        return (text,)


class InstanceSegmentation(Detection):
    """Boxes, classes and masks of objects."""

    columns = (
        *("epoch", "train_loss", "eval_map", "eval_map50", "eval_mask_map", "eval_mask_map50"),
        *("lr", "seconds", "images_per_second"),
    )
    best = "eval_mask_map"

    def row(self, evaluation: DetectionEvaluation) -> dict[str, float]:
        """The same with those of the masks."""
        masks = {"eval_mask_map": evaluation.mask_map, "eval_mask_map50": evaluation.mask_map50}
        return super().row(evaluation) | {name: value for name, value in masks.items() if value is not None}

    def line(self, row: Mapping[str, float]) -> str:
        """The same with the mask mAP."""
        return f"{super().line(row)}  mask mAP {row['eval_mask_map']:.4f}"


def _check_masks(model: Detector, data: DetectionData, say: Callable[[str], None]) -> None:
    """Refuse data without masks for a model that learns them, and say what of the data is not used.

    Raises:
        FoveateError: no object of a part has a mask.
    """
    if not model.with_masks:
        if data.train.has_masks:
            say("the masks of the data are not used: this detector finds boxes (mask_rcnn learns from masks, too)")
        return
    require_masks()
    for part in (data.train, data.val):
        if not part.has_masks:
            raise FoveateError(
                f"this network learns from masks of the objects, and the {part.name} images have only boxes: take "
                "faster_rcnn or ssdlite, or data with masks (the segmentation of COCO's JSON)"
            )
    without = [*data.train.without_mask(), *data.val.without_mask()]
    if without:
        say(
            f"objects without a mask, which are left out: {len(without)}, the first in {without[0]}; foveate data "
            "check names them"
        )
