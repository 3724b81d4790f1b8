"""Before training, attention in a block's place learns to give what the block gave.

Each module has a loss of its own, on the features that came into its block in the network before surgery: an error at
one place is not an input of the next. Only what stands in a block's place learns; nothing else of the network changes.

Source: FitNets' hints (Romero et al., https://arxiv.org/abs/1412.6550), for each block alone and on the teacher's own
features (Li et al., Blockwisely Supervised Neural Architecture Search, https://arxiv.org/abs/1911.13053).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.model_info import device_and_dtype
from foveate.preserve import preserve_state
from foveate.surgery.record import part, record_of, unwrapped
from foveate.training.input.protocols import Loader
from foveate.training.input.sampler import Order, mix, seed_draws
from foveate.training.metrics import Diverged
from foveate.training.recipes.recipe import Recipe

__all__ = ["Match", "Pair", "match_replaced", "pairs_of"]

LEARNING_RATE = 1e-2  # of Adam, falling linearly to 0


@dataclass(frozen=True)
class Match:
    """How near a module is to the block in whose place it stands, on one batch.

    Args:
        site: of the block.
        left_out: the mean squared error of the block's input as it comes, as a share of the variance of its output.
        before: that of what the module gives at the start.
        after: that of what it gives after the steps.
    """

    site: str
    left_out: float
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"{self.site}: the attention missed the output of the block that stood there by {self.before:.2f} of its "
            f"variance, now by {self.after:.2f}; the block's input misses it by {self.left_out:.2f}"
        )


@dataclass
class Pair:
    """A module, and the block in whose place it stands. As a forward hook it hands on what the block gives.

    Args:
        site: of the block.
        module: what stands there.
        block: a copy of what stood there, in evaluation mode.
    """

    site: str
    module: nn.Module
    block: nn.Module
    left_out: Tensor = field(default_factory=lambda: torch.zeros(()))
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], given: Tensor) -> Tensor:
        """Keep the module's error, and give what the block gives, of the same shape (B, C, H, W)."""
        with torch.no_grad():
            wanted: Tensor = self.block(*inputs)
            spread = wanted.float().var().clamp_min(torch.finfo(torch.float32).tiny)
            self.left_out = (inputs[0].float() - wanted.float()).square().mean() / spread
        self.loss = (given.float() - wanted.float()).square().mean() / spread
        return wanted


def pairs_of(model: nn.Module) -> list[Pair]:
    """Each module in a block's place that can learn, with a copy of the block.

    Raises:
        FoveateError: a block is not at hand, as after ``load``.
    """
    model = unwrapped(model)
    record, found = record_of(model), []
    for placed in record.placed if record else ():
        removed = record.removed.get(placed.site) if record else None
        module = part(model, placed.site) if placed.verb == "replacing" else None
        if module is None or not any(parameter.requires_grad for parameter in module.parameters()):
            continue  # a frozen one, or "identity"
        if removed is None or not removed.original:
            raise FoveateError(
                f"matching_steps needs the block that stood at {placed.site!r}, which a loaded network has no "
                "more: insert the plan into the network before surgery, or take matching_steps=0"
            )
        block = copy.deepcopy(removed.module).to(*device_and_dtype(model)).requires_grad_(False)
        found.append(Pair(placed.site, module, block.eval()))
    return found


def match_replaced(model: nn.Module, pairs: list[Pair], train: Loader, recipe: Recipe) -> list[Match]:
    """Let each module learn to give what the block in whose place it stands gave, by least squares.

    Every process does the same steps on the same images, and so needs nothing of the others.

    Args:
        model: adapted to the data. Weights and running statistics of the pairs' modules change, in place.
        pairs: of the model.
        train: the training images.
        recipe: its ``matching_steps``, ``batch_size`` and ``seed``.

    Returns:
        For each pair how near it came, on the first batch.

    Raises:
        Diverged: an error is not finite.
    """
    device = device_and_dtype(model)[0]
    learning = [p for pair in pairs for p in pair.module.parameters() if p.requires_grad]

    def errors(inputs: Tensor) -> list[Tensor]:
        train.forward(model, inputs)
        return [pair.loss for pair in pairs]

    with preserve_state(model, evaluation=True) as hooks:
        hooks.extend(pair.module.register_forward_hook(pair) for pair in pairs)
        model.requires_grad_(False)
        first = next(_batches(train, recipe))
        with torch.no_grad():
            before = [float(error) for error in errors(first)]
        for parameter in learning:
            parameter.requires_grad_(True)
        for pair in pairs:
            pair.module.train()
        optimiser = torch.optim.Adam(learning, LEARNING_RATE)
        for step, inputs in enumerate(_batches(train, recipe)):
            seed_draws(mix(recipe.seed, "match", step), device)
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * (1 - step / recipe.matching_steps)
            loss = torch.stack(errors(inputs)).sum()
            if not loss.isfinite():
                raise Diverged(
                    f"matching_steps: the error is {loss.item()} in step {step + 1}; matching_steps=0 leaves it out"
                )
            torch.autograd.backward([loss])
            optimiser.step()
            optimiser.zero_grad()
        for pair in pairs:
            pair.module.eval()
        with torch.no_grad():
            after = [float(error) for error in errors(first)]
    return [
        Match(pair.site, float(pair.left_out), start, end)
        for pair, start, end in zip(pairs, before, after, strict=True)
    ]


def _batches(train: Loader, recipe: Recipe) -> Iterator[Tensor]:
    """The inputs of as many batches as there are steps, in an order of their own."""
    seed = mix(recipe.seed, "match")
    steps = Order(train.count, recipe.batch_size, seed, 1).steps_per_epoch
    order = Order(train.count, recipe.batch_size, seed, -(-recipe.matching_steps // steps))
    for _, (inputs, _) in zip(range(recipe.matching_steps), train.batches(order), strict=False):
        yield inputs
