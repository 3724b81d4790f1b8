"""What segmentation and detection share: a network that stays as it is built, compared with the data by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import pretrained_config, update_pretrained_config
from foveate.networks.class_names import stored_names
from foveate.training.recipes.recipe import Recipe
from foveate.training.restore import own_batchnorms

__all__ = ["decoder_of", "fit_to_classes", "for_classification"]


def for_classification(recipe: Recipe, has_teacher: bool) -> dict[str, bool]:
    """What mixes images, distorts them or changes a classifier -> whether it is asked for: neither task here has it."""
    return {
        "mixup": recipe.mixup > 0,
        "cutmix": recipe.cutmix > 0,
        "augmentation='randaugment'": recipe.augmentation == "randaugment",
        "head_init_scale": recipe.head_init_scale is not None,
        "classifier='new'": recipe.classifier == "new",
        "a teacher": has_teacher,
    }


def fit_to_classes(
    model: nn.Module, count: int, classes: tuple[str, ...], recipe: Recipe, preprocess: Preprocess, create: str
) -> None:
    """Compare a model with the data's classes, and write into it how images are prepared and the classes' names.

    Args:
        model: changed in place.
        count: its classes.
        classes: of the data.
        recipe: its memory format, BatchNorm's momentum and what becomes of other names.
        preprocess: of the model.
        create: the function that builds such a network, for messages.

    Raises:
        FoveateError: the model has other classes, or nothing to train.
    """
    if count != len(classes):
        raise FoveateError(
            f"the model has {count} classes and the data has {len(classes)}: build it with "
            f"{create}(..., classes={len(classes)})"
        )
    names = stored_names(model, count)
    if names and names != classes and recipe.classifier != "keep":
        differs = next(n for n in range(count) if names[n] != classes[n])
        raise FoveateError(
            f"class {differs} of the model is called {names[differs]!r} and that of the data {classes[differs]!r}: "
            "give data of the model's classes in its order, or take classifier='keep', which renames the model's"
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
        "label_names": classes,
    }
    if "architecture" not in pretrained_config(model):
        fields["architecture"] = type(model).__name__
    update_pretrained_config(model, fields)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FoveateError(f"nothing to train in {type(model).__name__}: no parameter requires a gradient")


def decoder_of(model: nn.Module, create: str) -> tuple[str, ...]:
    """What reads the trunk's feature maps.

    Args:
        model: the network.
        create: the function that builds such a network, for the message.

    Raises:
        FoveateError: it has no part of that name.
    """
    if not isinstance(getattr(model, "decoder", None), nn.Module):
        raise FoveateError(
            f"{type(model).__name__} has no part called decoder, which is what 'trunk' does not freeze and what "
            f"head_learning_rate_scale is about: name a module to freeze, or build it with {create}"
        )
    return ("decoder",)
