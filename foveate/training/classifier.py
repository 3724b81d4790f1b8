"""A network and the data's classes: find the classifier, and give it the right number of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import update_pretrained_config
from foveate.networks.class_names import class_positions, positions_by_name, stored_names
from foveate.spec import Plan
from foveate.surgery.classifier import classifier_of
from foveate.surgery.record import record_of
from foveate.surgery.trace import probe
from foveate.surgery.wrappers import HeadWrapper
from foveate.training.input.sampler import mix
from foveate.training.recipes.recipe import Recipe
from foveate.training.restore import own_batchnorms

__all__ = ["adapt", "draw_small", "has_classes", "has_layers_for_classes", "replace_classifier", "write_config"]


def replace_classifier(model: nn.Module, classes: int, size: tuple[int, int, int] | None = None) -> None:
    """Give the model a new classifier, drawn from the global random numbers, on the old one's device.

    timm's ``reset_classifier`` where there is one for this layer; else a layer of the same kind in place of the found
    one.

    Args:
        model: changed in place.
        classes: how many.
        size: (channels, height, width) of an image that it can run on; without it what the model says.

    Raises:
        FoveateError: no classifier is found, or the model refuses.
    """
    names = classifier_of(model, size)
    old = model.get_submodule(names[0])
    like = next(old.parameters())
    timms: Any = model
    if _resets(model, old):
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
        raise FoveateError(f"the classifier {names[0]!r} is not a Linear or 1x1 convolution: replace it before fit")
    parent, _, leaf = names[0].rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
    if isinstance(getattr(model, "num_classes", None), int):
        model.num_classes = classes  # type: ignore[assignment]  # timm's networks have it


def _resets(model: nn.Module, layer: nn.Module) -> bool:
    """Whether ``reset_classifier`` is there and replaces a layer: a network built on timm's may have one behind it."""
    timms: Any = model
    if not hasattr(model, "reset_classifier") or not hasattr(model, "get_classifier"):
        return hasattr(model, "reset_classifier")
    word = timms.get_classifier()
    layers = word if isinstance(word, tuple | list) else [word]
    trained = [one for one in layers if isinstance(one, nn.Module) and any(True for _ in one.parameters())]
    return not trained or any(one is layer for one in trained)


@torch.no_grad()
def draw_small(model: nn.Module, std: float, size: tuple[int, int, int] | None = None) -> None:
    """Draw the classifier's weights from a normal distribution with this standard deviation; its biases become 0.

    A head that a plan put in the classifier's place keeps its own start.

    Args:
        model: changed in place.
        std: the standard deviation.
        size: (channels, height, width) of an image that it can run on; without it what the model says.
    """
    for name in classifier_of(model, size):
        layer: Any = model.get_submodule(name)
        if isinstance(layer, HeadWrapper):
            continue
        for own, parameter in layer.named_parameters():
            parameter.zero_() if own.endswith("bias") else parameter.normal_(0.0, std)


def write_config(model: nn.Module, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
    """Write into ``pretrained_cfg`` what the model now is: how images are prepared for it, and its class names.

    The config keeps its kind (timm's dataclass or a dictionary); a model without one gets a dictionary.
    """
    fields: dict[str, object] = {
        "input_size": (len(preprocess.mean), *preprocess.size),
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct,
        "num_classes": len(classes),
        "label_names": classes,
    }
    update_pretrained_config(model, fields)


def has_layers_for_classes(plan: Plan) -> bool:
    """Whether a plan has layers for each class: a head, or a pool with features for each of ``classes``."""
    return any(
        at.verb == "as head" or (at.verb == "as pool" and dict(at.spec.options).get("classes") is not None)
        for at in plan.placements
    )


def has_classes(model: nn.Module, classes: tuple[str, ...], size: tuple[int, int, int] | None = None) -> bool:
    """Whether the classifier of a model without a plan is for these classes, as far as the model says.

    Args:
        model: left as found.
        classes: of the data.
        size: (channels, height, width) of an image that it can run on; without it what the model says.
    """
    count = len(next(model.get_submodule(classifier_of(model, size)[0]).parameters()))
    own = stored_names(model, count)
    return own == classes if own else count == len(classes)


def _refuse_plan_for_classes(model: nn.Module, own: int, wanted: int) -> None:
    record = record_of(model)
    for at in record.placed if record else ():
        if at.verb == "as head" or at.per_class:
            raise FoveateError(
                f"'{at.spec} {at.verb}' was built for {own} classes and the data has {wanted}"
                f"{' others, or in another order' * (own == wanted)}: take classifier='keep', or remove the plan, set "
                f"the number of classes (create_model(..., num_classes={wanted})), and insert it again"
            )


def _fit_classes(
    model: nn.Module, count: int, classes: tuple[str, ...], recipe: Recipe, size: tuple[int, int, int]
) -> str:
    """Bring the classifier to the data's classes as the recipe says, and give a line of text about what was done.

    Args:
        model: its classifier has ``count`` outputs.
        count: of classes that the model has.
        classes: of the data.
        recipe: its ``classifier``, and whether it trains at all.
        size: (channels, height, width) of its images.
    """
    own = stored_names(model, count)
    if recipe.classifier == "keep":
        if count != len(classes):
            raise FoveateError(
                f"classifier='keep': the model has {count} classes and the data has {len(classes)}: take 'by name' or "
                "'new'"
            )
        return ""
    if recipe.classifier == "by name":
        if own == classes or (not own and count == len(classes)):
            return ""
        known = positions_by_name([(name,) for name in own], classes)
        if known == tuple(range(count)):
            return ""
        if known is not None:
            _take_outputs(model, count, known, size)
            return (
                f"the classifier's outputs for {', '.join(classes[:8])}{' ...' * (len(classes) > 8)} are kept, by name"
            )
        if own and not recipe.epochs:
            class_positions(model, classes, count)  # raises, with both lists
    _refuse_plan_for_classes(model, count, len(classes))
    replace_classifier(model, len(classes), size)
    return f"a new classifier for {len(classes)} classes, untrained" + (
        f" (the model's {count} are others)" if own else ""
    )


@torch.no_grad()
def _take_outputs(model: nn.Module, count: int, wanted: tuple[int, ...], size: tuple[int, int, int]) -> None:
    """Give the model a classifier with some of its outputs, in this order."""
    _refuse_plan_for_classes(model, count, len(wanted))
    names = classifier_of(model, size)
    states = [model.get_submodule(name).state_dict() for name in names]
    parts = [tensor for state in states for tensor in state.values()]
    kinds = [model.get_submodule(name) for name in names]
    if not all(isinstance(layer, nn.Linear | nn.Conv2d) for layer in kinds) or any(len(one) != count for one in parts):
        raise FoveateError(
            f"the data has the model's classes in another order or only some of them, and its classifier, a "
            f"{type(kinds[0]).__name__}, cannot be cut to them: take classifier='new'"
        )
    states = [{key: tensor[list(wanted)].clone() for key, tensor in state.items()} for state in states]
    if count != len(wanted):
        replace_classifier(model, len(wanted), size)
    for name, state in zip(classifier_of(model, size), states, strict=True):
        model.get_submodule(name).load_state_dict(state)


def adapt(
    model: nn.Module, classes: tuple[str, ...], recipe: Recipe, say: Callable[[str], None] = lambda _: None
) -> Preprocess:
    """Give a model the data's classes and the recipe's settings, in place.

    Args:
        model: gives one score per class for an image.
        classes: of the data.
        recipe: its image size, what becomes of the classifier, its seed, BatchNorm's momentum and memory format.
        say: is called with a line of text about a classifier that is changed.

    Returns:
        How images are prepared for the model.

    Raises:
        FoveateError: the model takes other channels, cannot run on this image size, is not a classifier, has no
            parameter to train, or does not know the data's classes and is not to be trained.
    """
    preprocess = Preprocess.of(model, recipe.image_size)
    size = (len(preprocess.mean), *preprocess.size)
    seen, _ = probe(model, size)
    shape = seen[""].out_shape
    if shape is None or len(shape) != 2:
        gives = f"shape {shape}" if shape else f"a {seen[''].out_type}"
        raise FoveateError(f"{type(model).__name__} gives {gives} for an image, not one score per class: no classifier")
    torch.manual_seed(mix(recipe.seed, "classifier"))
    done = _fit_classes(model, shape[1], classes, recipe, size)
    if done:
        say(done)
    if recipe.head_init_scale is not None:
        draw_small(model, recipe.head_init_scale, size)
    if recipe.bn_momentum is not None:
        for norm in own_batchnorms(model):
            norm.momentum = recipe.bn_momentum
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    write_config(model, preprocess, classes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FoveateError(f"nothing to train in {type(model).__name__}: no parameter requires a gradient")
    return preprocess
