"""A network and the data's classes: find the classifier, and give it the right number of classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import update_pretrained_config
from foveate.surgery.apply import record_of
from foveate.surgery.classifier import classifier_of
from foveate.surgery.trace import probe
from foveate.surgery.wrappers import HeadPlace
from foveate.training.input.sampler import mix
from foveate.training.recipe import Recipe
from foveate.training.restore import own_batchnorms

__all__ = ["adapt", "draw_small", "replace_classifier", "write_config"]


def replace_classifier(model: nn.Module, classes: int) -> None:
    """Give the model a new classifier, drawn from the global random numbers, on the old one's device.

    timm's ``reset_classifier`` where there is one; else a layer of the same kind in place of the found one.

    Raises:
        FoveateError: no classifier is found, or the model refuses.
    """
    names = classifier_of(model)
    old = model.get_submodule(names[0])
    like = next(old.parameters())
    timms: Any = model
    if hasattr(model, "reset_classifier"):
        try:
            timms.reset_classifier(classes)
        except (TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
            raise FoveateError(f"the classifier of {type(model).__name__} cannot be replaced: {error}") from error
        for name in classifier_of(model):
            model.get_submodule(name).to(like.device, like.dtype)
        return
    where: dict[str, Any] = {"bias": getattr(old, "bias", None) is not None, "device": like.device, "dtype": like.dtype}
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, classes, **where)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1):
        new = nn.Conv2d(old.in_channels, classes, 1, **where)
    else:
        raise FoveateError(f"the classifier {names[0]!r} is no Linear or 1x1 convolution: replace it before fit")
    parent, _, leaf = names[0].rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
    if isinstance(getattr(model, "num_classes", None), int):
        model.num_classes = classes  # type: ignore[assignment]


@torch.no_grad()
def draw_small(model: nn.Module, std: float) -> None:
    """Draw the classifier's weights from a normal distribution with this standard deviation; its biases become 0.

    A head that a plan put in the classifier's place keeps its own start.
    """
    for name in classifier_of(model):
        layer: Any = model.get_submodule(name)
        if isinstance(layer, HeadPlace):
            continue
        for own, parameter in layer.named_parameters():
            parameter.zero_() if own.endswith("bias") else parameter.normal_(0.0, std)


def write_config(model: nn.Module, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
    """Write into ``pretrained_cfg`` what the model now is: how images are prepared for it, and its class names.

    The config keeps its kind (timm's dataclass or a dictionary); a model without one gets a dictionary.
    """
    fields: dict[str, Any] = {
        "input_size": (len(preprocess.mean), *preprocess.size),
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct,
        "num_classes": len(classes),
        "label_names": classes,
    }
    update_pretrained_config(model, fields)


def _refuse_plan_for_classes(model: nn.Module, own: int, wanted: int) -> None:
    record = record_of(model)
    for at in record.placed if record else ():
        if at.verb == "as head" or at.per_class:
            raise FoveateError(
                f"'{at.spec} {at.verb}' was built for {own} classes and the data has {wanted}: remove the plan, set "
                f"the number of classes (create_model(..., num_classes={wanted})), and insert it again"
            )


def adapt(model: nn.Module, classes: tuple[str, ...], recipe: Recipe) -> Preprocess:
    """Give a model the data's classes and the recipe's settings, in place.

    Args:
        model: gives one score per class for an image.
        classes: of the data.
        recipe: its image size, the seed of a new classifier, BatchNorm's momentum and memory format.

    Returns:
        How images are prepared for the model.

    Raises:
        FoveateError: the model takes other channels, cannot run on this image size, is no classifier, or has no
            parameter to train.
    """
    preprocess = Preprocess.of(model, recipe.image_size)
    seen, _ = probe(model, (len(preprocess.mean), *preprocess.size))
    shape = seen[""].out_shape
    if shape is None or len(shape) != 2:
        gives = f"shape {shape}" if shape else f"a {seen[''].out_type}"
        raise FoveateError(f"{type(model).__name__} gives {gives} for an image, not one score per class: no classifier")
    torch.manual_seed(mix(recipe.seed, "classifier"))
    if shape[1] != len(classes):
        _refuse_plan_for_classes(model, shape[1], len(classes))
        replace_classifier(model, len(classes))
    if recipe.head_init_scale is not None:
        draw_small(model, recipe.head_init_scale)
    if recipe.bn_momentum is not None:
        for norm in own_batchnorms(model):
            norm.momentum = recipe.bn_momentum
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    write_config(model, preprocess, classes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FoveateError(f"nothing to train in {type(model).__name__}: no parameter requires a gradient")
    return preprocess
