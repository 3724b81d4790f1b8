"""One step of the optimiser: forward, loss and backward for each batch of the step, then the update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.model_info import device_and_dtype
from foveate.training.context import RunContext
from foveate.training.input.protocols import Loader
from foveate.training.input.sampler import Batch, Order, mix, seed_draws
from foveate.training.speed.compilation import CompiledCalls
from foveate.training.tasks.task import Task
from foveate.training.teacher.distillation import Teacher

__all__ = ["TrainStep"]


class TrainStep:
    """Trains a model, step by step.

    What a step draws at random (mixing, dropout) depends on the seed, the step, the process and the batch alone, so
    there is no random state to keep for a resume.

    Args:
        model: in training mode.
        train: the training images.
        context: of the run.
        optimiser: Accelerate's, around the recipe's.
        task: what the model is trained for.
        classes: how many there are.
        ema: timm's moving average of the weights, or None.
        teacher: to learn from, or None.

    Raises:
        FoveateError: parts of the recipe do not go with each other or with the model.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Loader,
        context: RunContext,
        optimiser: Any,
        task: Task,
        classes: int,
        ema: Any,
        teacher: Teacher | None,
    ) -> None:
        recipe = context.recipe
        self.model, self.recipe, self.train, self.group = model, recipe, train, context.group
        self.optimiser, self.ema, self.teacher = optimiser, ema, teacher
        self.context, self.task, self.classes = context, task, classes
        cached = train.trunk is not None
        self.objective = task.objective(model, recipe, cached=cached, has_teacher=teacher is not None)
        self.mixing = task.mixing(recipe, classes)
        self.device = device_and_dtype(model)[0]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._compiled: dict[str, CompiledCalls] = {}
        self.use(recipe.amp, "")

    def use(self, amp: str, backend: str) -> None:
        """Train from now on in this precision, and by this backend of torch.compile, or "".

        Args:
            amp: that of the recipe, or where the recipe says "auto", "no" or "bf16".
            backend: for full batches.

        Raises:
            FoveateError: torch has no such backend.
        """
        self._half = amp == "bf16" and self.recipe.amp == "auto"  # otherwise Accelerate has it from the recipe
        if backend not in self._compiled:
            self._compiled[backend] = CompiledCalls(self.model, backend, self.recipe.batch_size)
        self._calls = self._compiled[backend]

    def step(self, stream: Iterator[Batch], order: Order, epoch: int, at: int) -> Tensor:
        """Do one step; on a CPU only if the loss is finite.

        Args:
            stream: gives the batches.
            order: that the stream follows.
            epoch: which it is.
            at: step within it.

        Returns:
            () the mean loss over the images of all processes, on the model's device.
        """
        group, images = self.group, order.images(at)
        step = epoch * order.steps_per_epoch + at
        total = torch.zeros((), device=self.device)
        for part in range(order.batches(at)):
            inputs, labels = next(stream)
            place = (step, group.rank, part) if group.rank or part else (step,)
            seed_draws(mix(self.recipe.seed, "step", *place), self.device)
            loss = self.loss(inputs, labels) * (len(labels) / images)
            group.accelerator.backward(loss)
            total += loss.detach()
        total = group.all_reduce(self.parameters, total)
        # On a GPU a look at the loss would make the device wait for us in every step: there the loop looks later.
        if self.device.type == "cpu" and not total.isfinite():
            return total
        if self.recipe.gradient_clip is not None:
            group.accelerator.clip_grad_norm_(self.parameters, self.recipe.gradient_clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)
        return total

    def of_copy(self, model: nn.Module, optimiser: Any) -> TrainStep:
        """The same step for a copy of the model, without a moving average."""
        return TrainStep(model, self.train, self.context, optimiser, self.task, self.classes, None, self.teacher)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        if self._half:
            return torch.autocast(self.device.type, torch.bfloat16)
        accelerates: contextlib.AbstractContextManager[None] = self.group.accelerator.autocast()
        return accelerates

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """() the loss of one batch of this process."""
        inputs = self.train.prepared(inputs, self.device)
        if self.mixing is not None:
            inputs, labels = self.mixing(inputs, labels)
        try:
            with self._autocast(), self.objective.images(), self._calls.on(len(labels)):
                scores = self.train.scores(self.model, inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise FoveateError(
                "BatchNorm over a 1x1 map cannot train on a batch of 1: take batch_size=2 or more"
            ) from error
        loss = self.objective.loss(scores, labels)
        return loss if self.teacher is None else self.teacher.loss(scores, inputs, loss)
