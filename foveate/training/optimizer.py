"""The optimiser, from timm, and the learning rate as a pure function of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import timm.optim
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.training.recipes.optimiser_name import check_optimiser
from foveate.training.recipes.recipe import Recipe

__all__ = ["create_optimiser", "learning_rate_factor", "set_learning_rate"]


def create_optimiser(model: nn.Module, head: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the parameters that require a gradient.

    Biases and all parameters with one axis (those of norms) are not decayed, nor what timm's models name in
    ``no_weight_decay``. Each group keeps its multiple of the learning rate as ``lr_scale``.

    Args:
        model: the whole model.
        head: the parameters that learn at ``head_learning_rate_scale``.
        recipe: names the optimiser and its settings.

    Raises:
        FoveateError: timm has no optimiser of this name, or it refuses the settings.
    """
    check_optimiser(recipe.optimiser)
    in_head = {id(parameter) for parameter in head}
    timms: Any = model
    spared = set(timms.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(".bias") and name not in spared
            groups.setdefault((decayed, id(parameter) in in_head), []).append(parameter)
    described: list[dict[str, object]] = [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "lr_scale": recipe.head_learning_rate_scale if of_head else 1.0,
        }
        for (decayed, of_head), parameters in groups.items()
    ]
    # timm's "sgd" is Nesterov's, which has no form without momentum; its "momentum" is the plain one.
    name = "momentum" if recipe.optimiser == "sgd" and recipe.momentum == 0 else recipe.optimiser
    try:
        optimiser: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            described, opt=name, lr=recipe.learning_rate, momentum=recipe.momentum, **_in_one_pass(name, described)
        )
    except (TypeError, ValueError, AssertionError, ImportError, RuntimeError) as error:
        raise FoveateError(f"the optimiser {recipe.optimiser!r} cannot be made: {error}") from error
    return optimiser


def _in_one_pass(name: str, groups: list[dict[str, Any]]) -> dict[str, bool]:
    """``fused=True`` where torch has such a form: of a compact network's step the optimiser is a part that tells."""
    made = timm.optim.get_optimizer_class(name, bind_defaults=False)
    known = made.__module__.startswith("torch.optim.") and "fused" in inspect.signature(made).parameters
    parameters = [parameter for group in groups for parameter in group["params"]]
    fitting = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return {"fused": True} if known and fitting else {}


def learning_rate_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The share of the recipe's learning rate that a step takes.

    Args:
        recipe: schedule, epochs and warm-up.
        step: steps done since the start of the run.
        steps_per_epoch: steps in one epoch.

    Returns:
        With t in [0, 1) the share of the steps after the warm-up that are done: (1 + cos(pi t)) / 2, or 0.1 to the
        power floor(3 t), or 1. In the warm-up of w steps: (step + 1) / (w + 1).
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, recipe.epochs * steps_per_epoch - warmup)
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "step":
        return 0.1 ** math.floor(3 * done)
    return 1.0


def set_learning_rate(optimiser: torch.optim.Optimizer, recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Give each group its learning rate for a step; returns the network's, without ``lr_scale``."""
    rate = recipe.learning_rate * learning_rate_factor(recipe, step, steps_per_epoch)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate
