"""Recipes by name, each with its source, and recipes from YAML files. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from foveate.errors import FoveateError, near
from foveate.training.recipes.recipe import Recipe
from foveate.training.recipes.yaml_file import read_flat, write_flat

__all__ = ["NAMED", "Named", "as_yaml", "open_recipe"]

_BASE = "base"


@dataclass(frozen=True)
class Named:
    """A recipe that has a name.

    Args:
        recipe: what it is.
        what: what it is for.
        source: where its numbers come from.
    """

    recipe: Recipe
    what: str
    source: str


NAMED: dict[str, Named] = {
    "short": Named(
        Recipe(
            epochs=4, learning_rate=1e-3, warmup_epochs=0.5, weight_decay=0.01, label_smoothing=0.1, image_size=128,
            batch_size=32, bn_momentum=0.1, head_init_scale=0.01, gradient_clip=5.0,
        ),
        "fine-tuning a pretrained network for minutes on a CPU",
        "ours: tried on the solar cells (elpv), where a small start of the classifier, BatchNorm's usual momentum and "
        "channels-last memory were worth six points of accuracy over timm's defaults",
    ),
    "scratch": Named(
        Recipe(
            epochs=60, optimiser="sgd", learning_rate=0.1, warmup_epochs=3.0, weight_decay=5e-4, label_smoothing=0.1,
            augmentation="standard", image_size=128, batch_size=64, workers=2,
        ),
        "training from random weights at 128 pixels on some thousand images",
        "ours: He et al., https://arxiv.org/abs/1812.01187 (cosine, warm-up, label smoothing, no decay of biases) with "
        "the weight decay that is usual for small images",
    ),
    "imagenet": Named(
        Recipe(
            epochs=150, optimiser="sgd", learning_rate=0.05, warmup_epochs=5.0, weight_decay=4e-5, label_smoothing=0.1,
            augmentation="standard", image_size=224, batch_size=256, workers=8,
        ),
        "compact networks (MobileNetV2) from random weights on ImageNet-1k",
        "GluonCV's published log of MobileNetV2-0.5 (SGD, 0.05, batch 256, cosine, 150 epochs, 5 of warm-up, decay "
        "4e-5 without biases, label smoothing); https://github.com/tonylins/pytorch-mobilenet-v2 reports over 72% for "
        "MobileNetV2-1.0 with the same rate, decay and epochs",
    ),
    "aggregation": Named(
        Recipe(
            epochs=300, optimiser="lamb", learning_rate=5e-3, warmup_epochs=5.0, weight_decay=0.02, loss="bce",
            augmentation="randaugment", randaugment_magnitude=7, mixup=0.1, cutmix=1.0, image_size=224,
            batch_size=256, accumulate=8, workers=8,
        ),
        "PatchConvNet and attention pooling from random weights on ImageNet-1k, 2,048 images in a step",
        "procedure A2 of Wightman et al., https://arxiv.org/abs/2110.00476 (LAMB, binary cross-entropy), in place of "
        "the numbers of Touvron et al., https://arxiv.org/abs/2112.13692, which we could not check. Stochastic depth "
        "is an option of the network; repeated augmentation is left out",
    ),
}  # fmt: skip


def open_recipe(source: str | os.PathLike[str] | Recipe, **overrides: object) -> Recipe:
    """A recipe by its name or from a YAML file, with some fields changed.

    A file holds lines of ``field: value``. The line ``base: short`` starts from a named recipe instead of from the
    defaults.

    Args:
        source: "short", "scratch", "imagenet" or "aggregation"; a file that ends in .yaml or .yml; or a recipe.
        overrides: fields and their values.

    Returns:
        The recipe.

    Raises:
        FoveateError: no such recipe or file, a file that cannot be read, an unknown or repeated field, a wrong value.
    """
    if isinstance(source, Recipe):
        return source.with_(**overrides)
    path = Path(source)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return _named(str(source)).with_(**overrides)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise FoveateError(f"the recipe {path} cannot be read: {reason}") from error
    fields = read_flat(text, str(path))
    base = fields.pop(_BASE, None)
    start = Recipe() if base is None else _named(str(base))
    try:
        return start.with_(**fields).with_(**overrides)
    except FoveateError as error:
        raise FoveateError(f"{path}: {error}") from error


def _named(name: str) -> Recipe:
    if name not in NAMED:
        raise FoveateError(f"no recipe is called {name!r}: {near(name, NAMED)} (or name a .yaml file)")
    return NAMED[name].recipe


def as_yaml(recipe: Recipe) -> str:
    """The text of a file that ``open_recipe`` reads as this recipe."""
    return write_flat(recipe.to_dict())
