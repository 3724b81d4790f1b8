"""Steps of a copy of the model, timed before a run: the model, its optimiser and the run's data stay as they are."""

from __future__ import annotations

import statistics
import time

import torch

from foveate.surgery.model_copy import copied
from foveate.training.input.sampler import Batch
from foveate.training.optimizer import create_optimiser
from foveate.training.recipes.recipe import Recipe
from foveate.training.train_step import TrainStep

__all__ = ["Trial"]

_LEAST, _MOST, _SECONDS = 5, 31, 3.0  # rounds of a comparison; after so many seconds no more than the least


class Trial:
    """A copy of the model that trains on one batch, over and over.

    Args:
        step: of the run, whose model is in training mode, with its frozen parts in evaluation mode; it is not run.
        batch: as the run's first one.
        recipe: of the run.

    Raises:
        FoveateError: the model cannot be copied.
    """

    def __init__(
        self,
        step: TrainStep,
        batch: Batch,
        recipe: Recipe,
    ) -> None:
        self.model, self.batch = copied(step.model, data=True), batch
        for own, theirs in zip(self.model.modules(), step.model.modules(), strict=True):
            own.training = theirs.training
        self.optimiser = create_optimiser(self.model, (), recipe)
        for group in self.optimiser.param_groups:
            group["lr"] = 0.0  # many steps on one batch: the weights must not run away, for infinite ones take longer
        self.step = step.of_copy(self.model, self.optimiser)
        self.device = self.step.device

    def seconds(self, amp: str, backend: str) -> float:
        """Of one step, with the first runs of anything new in it."""
        self.step.use(amp, backend)
        began = self._now()
        self.step.group.accelerator.backward(self.step.loss(*self.batch))
        self.optimiser.step()
        self.optimiser.zero_grad()
        return self._now() - began

    def compare(self, *settings: tuple[str, str]) -> list[float]:
        """Seconds of a step with each of some settings, in turns: the first one's median, the others' in proportion.

        Their ratios to the first are medians of those within a round: a machine that other programs make slower for
        seconds at a time changes both sides of such a ratio, while the shortest steps may be of different times.

        Args:
            settings: pairs of precision and backend; each has run before.
        """
        began = self._now()
        rounds: list[list[float]] = []
        while len(rounds) < _LEAST or (len(rounds) < _MOST and self._now() - began < _SECONDS):
            rounds.append([self.seconds(*setting) for setting in settings])
        first = statistics.median(times[0] for times in rounds)
        return [first * statistics.median(times[at] / times[0] for times in rounds) for at in range(len(settings))]

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()
