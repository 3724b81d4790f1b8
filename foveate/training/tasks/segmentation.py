"""Segmentation: a class for each pixel, measured by the mean intersection over union."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.data.segmentation import SegmentationData, SegmentationSplit
from foveate.dense.create import create_segmenter
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.preserve import preserve_state
from foveate.scores import pixel_scores
from foveate.training.context import RunContext
from foveate.training.input.sampler import Batch
from foveate.training.input.segmentation import SegmentationPipeline
from foveate.training.recipes.recipe import Recipe
from foveate.training.tasks.dense import decoder_of, fit_to_classes, for_classification
from foveate.training.tasks.segmentation_loss import SegmentationObjective
from foveate.training.tasks.segmentation_metrics import (
    CollectedCounts,
    SegmentationEvaluation,
    collect_counts,
    measure_counts,
)
from foveate.whole_images import WholeImage

__all__ = ["Segmentation"]


class Segmentation:
    """A class for each pixel."""

    name = "segmentation"
    columns: tuple[str, ...] = (
        *("epoch", "train_loss", "eval_loss", "eval_miou", "eval_pixel_accuracy", "lr", "seconds"),
        "images_per_second",
    )
    best = "eval_miou"

    def create(self, name: str, data: SegmentationData, pretrained: bool) -> nn.Module:
        """By ``create_segmenter``, with its compact head, on the trunk of that name."""
        return create_segmenter(name, classes=data.classes, pretrained=pretrained)

    def strata(self, part: SegmentationSplit) -> Sequence[int]:
        """All images are alike."""
        return [0] * len(part)

    def check(self, recipe: Recipe, has_teacher: bool) -> None:
        """Refuse what is for classification.

        Raises:
            FoveateError: the recipe mixes images, distorts them or changes a classifier, or there is a teacher.
        """
        asked = {**for_classification(recipe, has_teacher), "loss='bce'": recipe.loss == "bce"}
        wanted = [name for name, wants in asked.items() if wants]
        if wanted:
            raise FoveateError(
                f"{wanted[0]} is for classification, and this data is for segmentation: leave it out (augmentation is "
                "'none', 'flip' or 'standard'; loss is 'cross_entropy', 'dice' or 'cross_entropy+dice')"
            )

    def adapt(self, model: nn.Module, data: SegmentationData, recipe: Recipe, say: Callable[[str], None]) -> Preprocess:
        """Compare the model with the data's classes, and write into it how images are prepared and the classes' names.

        Raises:
            FoveateError: the model is no segmentation network, or has other classes.
        """
        preprocess = WholeImage.of(model, recipe.image_size).preprocess
        count = _classes_of(model, preprocess)
        fit_to_classes(model, count, data.classes, recipe, preprocess, "create_segmenter")
        say(f"images are {preprocess.size[0]} pixels on their shorter side")
        return preprocess

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """What reads the trunk's feature maps."""
        return decoder_of(model, "create_segmenter")

    def pipeline(
        self, model: nn.Module, data: SegmentationData, preprocess: Preprocess, context: RunContext
    ) -> SegmentationPipeline:
        """Images with their label maps."""
        head = self.head(model) if context.recipe.freeze == "trunk" else ()
        return SegmentationPipeline(model, data, preprocess, context, head)

    def objective(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        cached: bool,  # of the interface: nothing is cached here
        has_teacher: bool,  # refused by check
    ) -> SegmentationObjective:
        """Cross-entropy, Dice or both, of every output."""
        return SegmentationObjective(model, recipe)

    def mixing(self, recipe: Recipe, classes: int) -> None:
        """Images are not mixed."""

    def evaluate(
        self,
        forward: Callable[[Tensor], Any],
        batches: Iterable[Batch],
        gather: Callable[[Tensor], Tensor],
        classes: tuple[str, ...],
    ) -> SegmentationEvaluation:
        """The mean intersection over union and the rest."""
        own = collect_counts(forward, batches, len(classes))
        return measure_counts(CollectedCounts(gather(own.counts), gather(own.losses)), classes)

    def row(self, evaluation: SegmentationEvaluation) -> dict[str, float]:
        """Loss, mIoU, pixel accuracy."""
        return {
            "eval_loss": evaluation.loss,
            "eval_miou": evaluation.miou,
            "eval_pixel_accuracy": evaluation.pixel_accuracy,
        }

    def line(self, row: Mapping[str, float]) -> str:
        """The mIoU and the pixel accuracy."""
        return f"mIoU {row['eval_miou']:.4f}  pixel accuracy {row['eval_pixel_accuracy']:.4f}"

    def notes(self, evaluation: SegmentationEvaluation) -> tuple[str, ...]:
        """Whether one could do as well without looking at the images."""
        actual = evaluation.counts[..., 2].sum(0)
        largest = int(actual.argmax())
        share = float(actual[largest] / actual.sum())
        if evaluation.pixel_accuracy > share:
            return ()
        name = evaluation.classes[largest] if evaluation.classes else largest
        text = (
            f"the pixel accuracy is {evaluation.pixel_accuracy:.1%}, no more than who always says {name!r} has "
            f"({share:.1%}): the network has learned nothing that counts; start from pretrained weights, or train "
            "longer"
        )
        return (text,)


def _classes_of(model: nn.Module, preprocess: Preprocess) -> int:
    """How many classes a model gives scores for, found by running it on an image of zeros."""
    device, dtype = device_and_dtype(model)
    with preserve_state(model, evaluation=True, no_grad=True):
        try:
            output = model(torch.zeros(1, len(preprocess.mean), *preprocess.size, device=device, dtype=dtype))
        except FoveateError:
            raise
        except Exception as error:
            raise FoveateError(
                f"{type(model).__name__} cannot run on an image of {preprocess.size}: {error}; take another image_size"
            ) from error
    return pixel_scores(output).shape[1]
