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
from foveate.model_info import device_and_dtype, pretrained_config, update_pretrained_config
from foveate.networks.class_names import stored_names
from foveate.preserve import preserve_state
from foveate.scores import pixel_scores
from foveate.training.context import RunContext
from foveate.training.input.sampler import Batch
from foveate.training.input.segmentation import SegmentationPipeline
from foveate.training.recipes.recipe import Recipe
from foveate.training.restore import own_batchnorms
from foveate.training.tasks.segmentation_loss import SegmentationObjective
from foveate.training.tasks.segmentation_metrics import SegmentationEvaluation, collect_counts, measure_counts
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
        asked = {
            "mixup": recipe.mixup > 0,
            "cutmix": recipe.cutmix > 0,
            "augmentation='randaugment'": recipe.augmentation == "randaugment",
            "loss='bce'": recipe.loss == "bce",
            "head_init_scale": recipe.head_init_scale is not None,
            "classifier='new'": recipe.classifier == "new",
            "a teacher": has_teacher,
        }
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
        shorter = preprocess.size[0]
        count = _classes_of(model, preprocess)
        if count != len(data.classes):
            raise FoveateError(
                f"the model has {count} classes and the data has {len(data.classes)}: build it with "
                f"create_segmenter(..., classes={len(data.classes)})"
            )
        names = stored_names(model, count)
        if names and names != data.classes and recipe.classifier != "keep":
            differs = next(n for n in range(count) if names[n] != data.classes[n])
            raise FoveateError(
                f"class {differs} of the model is called {names[differs]!r} and that of the data "
                f"{data.classes[differs]!r}: give data of the model's classes in its order, or take classifier='keep', "
                "which renames the model's"
            )
        if recipe.bn_momentum is not None:
            for norm in own_batchnorms(model):
                norm.momentum = recipe.bn_momentum
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        fields: dict[str, Any] = {
            "input_size": (len(preprocess.mean), *preprocess.size),
            "mean": preprocess.mean,
            "std": preprocess.std,
            "interpolation": preprocess.interpolation,
            "crop_pct": 1.0,
            "num_classes": count,
            "label_names": data.classes,
        }
        if "architecture" not in pretrained_config(model):
            fields["architecture"] = type(model).__name__
        update_pretrained_config(model, fields)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise FoveateError(f"nothing to train in {type(model).__name__}: no parameter requires a gradient")
        say(f"images are {shorter} pixels on their shorter side")
        return preprocess

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """What reads the trunk's feature maps."""
        if not isinstance(getattr(model, "decoder", None), nn.Module):
            raise FoveateError(
                f"{type(model).__name__} has no part called decoder, which is what 'trunk' does not freeze and what "
                "head_learning_rate_scale is about: name a module to freeze, or build it with create_segmenter"
            )
        return ("decoder",)

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
        counts, losses = collect_counts(forward, batches, len(classes))
        return measure_counts(gather(counts), gather(losses), classes)

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
