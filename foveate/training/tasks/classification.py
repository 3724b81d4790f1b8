"""Classification: one class for each image, measured by top-1 accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.networks.create import create_model
from foveate.surgery.classifier import classifier_of
from foveate.training.classifier import adapt
from foveate.training.context import RunContext
from foveate.training.input.mixup import Mixing
from foveate.training.input.pipeline import InputPipeline
from foveate.training.input.sampler import Batch
from foveate.training.loss import Objective
from foveate.training.metrics import Evaluation, collect_scores, measure
from foveate.training.recipes.recipe import Recipe

__all__ = ["Classification"]


class Classification:
    """One class for each image."""

    name = "classification"
    columns: tuple[str, ...] = (
        *("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr", "eval_macro_f1", "seconds"),
        "images_per_second",
    )
    best = "eval_top1"

    def create(self, name: str, data: ImageData, pretrained: bool) -> nn.Module:  # adapt fits its classes
        """By ``create_model``."""
        return create_model(name, pretrained=pretrained)

    def strata(self, part: Split) -> Sequence[int]:
        """The classes."""
        return part.labels

    def check(self, recipe: Recipe, has_teacher: bool) -> None:  # of the interface: any may teach
        """Refuse what is for segmentation.

        Raises:
            FoveateError: the loss is one of pixels.
        """
        if "dice" in recipe.loss:
            raise FoveateError(f"loss={recipe.loss!r} is for segmentation: take loss='cross_entropy' or 'bce'")

    def adapt(self, model: nn.Module, data: ImageData, recipe: Recipe, say: Callable[[str], None]) -> Preprocess:
        """Give the model the data's classes; see ``foveate.training.classifier.adapt``."""
        return adapt(model, data.classes, recipe, say)

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """The classifier."""
        return classifier_of(model)

    def pipeline(self, model: nn.Module, data: ImageData, preprocess: Preprocess, context: RunContext) -> InputPipeline:
        """Images with their labels, or a frozen trunk's features."""
        return InputPipeline(model, data, preprocess, context)

    def objective(self, model: nn.Module, recipe: Recipe, *, cached: bool, has_teacher: bool) -> Objective:
        """Cross-entropy, or what the recipe or a part of the model says."""
        return Objective(model, recipe, cached=cached, has_teacher=has_teacher)

    def mixing(self, recipe: Recipe, classes: int) -> Mixing | None:
        """Mixup and CutMix."""
        return Mixing(recipe, classes) if recipe.mixup or recipe.cutmix else None

    def evaluate(
        self,
        forward: Callable[[Tensor], Tensor],
        batches: Iterable[Batch],
        gather: Callable[[Tensor], Tensor],
        classes: tuple[str, ...],
    ) -> Evaluation:
        """Top-1 and the rest."""
        found = collect_scores(forward, batches, len(classes))
        return replace(measure(*(gather(rows) for rows in found)), classes=classes)

    def row(self, evaluation: Evaluation) -> dict[str, float]:
        """Loss, top-1, top-5, macro-F1."""
        return {
            "eval_loss": evaluation.loss,
            "eval_top1": evaluation.top1,
            "eval_top5": evaluation.top5,
            "eval_macro_f1": evaluation.macro_f1,
        }

    def line(self, row: Mapping[str, float]) -> str:
        """Top-1 and macro-F1."""
        return f"top-1 {row['eval_top1']:.4f}  macro-F1 {row['eval_macro_f1']:.4f}"

    def notes(self, evaluation: Evaluation) -> tuple[str, ...]:
        """Whether one could do as well without looking at the images."""
        counts = evaluation.labels.bincount()
        largest = int(counts.argmax())
        share = float(counts[largest]) / len(evaluation.labels)
        if evaluation.top1 > share:
            return ()
        name = repr(evaluation.classes[largest]) if largest < len(evaluation.classes) else f"class {largest}"
        text = (
            f"top-1 is {evaluation.top1:.1%}; answering {name} for every image gives {share:.1%}: the network has not "
            "learned to tell the classes apart; start from pretrained weights, train longer, or look at the data "
            "(foveate data check)"
        )
        return (text,)
