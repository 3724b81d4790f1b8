"""An equal tuning budget: each plan tries the same learning rates, on images held out of its training images.

The validation images, on which the plans are compared, take no part. Every plan gets the same number of trials, the
same trials, the same split and the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foveate.data import ImageData
from foveate.data.division import stratified
from foveate.errors import FoveateError
from foveate.studies.comparison.run import RunResult

__all__ = ["Tuning", "check_learning_rates", "choose", "tuning_data"]

_FRACTION = 0.2


@dataclass(frozen=True)
class Tuning:
    """What was tried.

    Args:
        learning_rates: each tried with every plan.
        chosen: for each label the one that was taken.
        top1: for each label the accuracy in percent with each learning rate; None where the run diverged.
        train_images: images that the trials trained on.
        held_out: images that they were judged by, held out of the training images.
        seed: of the trials and the split.
    """

    learning_rates: tuple[float, ...]
    chosen: Mapping[str, float]
    top1: Mapping[str, tuple[float | None, ...]]
    train_images: int
    held_out: int
    seed: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Tuning:
        """The same from plain values, as JSON gives them."""
        top1 = {label: tuple(scores) for label, scores in values["top1"].items()}
        return cls(**{**values, "learning_rates": tuple(values["learning_rates"]), "top1": top1})

    def __str__(self) -> str:
        trials, plans = len(self.learning_rates), len(self.chosen)
        rates = ", ".join(f"{rate:g}" for rate in self.learning_rates)
        taken = "; ".join(f"{label}: {rate:g}" for label, rate in self.chosen.items())
        if len(set(self.chosen.values())) == 1:
            taken = f"{next(iter(self.chosen.values())):g} for every plan"
        return (
            f"Equal tuning budget: {trials} trials for each of {plans} plans ({trials * plans} in all), "
            f"learning rates {rates}, judged by {self.held_out} images held out of the training images (seed "
            f"{self.seed}), never by the validation images. Taken: {taken}."
        )


def check_learning_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """The learning rates to be tried, or none.

    Raises:
        FoveateError: one is given twice, is not a positive number, or there is a single one.
    """
    found = tuple(float(rate) for rate in rates)
    if len(set(found)) != len(found) or any(not rate > 0 for rate in found):
        raise FoveateError(f"learning_rates={list(rates)}: give different positive numbers, such as 0.001, 0.003")
    if len(found) == 1:
        raise FoveateError(f"learning_rates={list(rates)}: one leaves nothing to choose; put it into the recipe")
    return found


def tuning_data(data: ImageData, seed: int) -> ImageData:
    """The training images alone, a fifth of each class held out of them for choosing.

    Raises:
        FoveateError: no class has two training images.
    """
    first, second = stratified(data.train.names, data.train.labels, _FRACTION, seed)
    if not second:
        raise FoveateError(f"{data.name} has no class with two training images, so none can be held out for tuning")
    train, held_out = data.train.subset(first), replace(data.train.subset(second), name="val")
    return replace(data, train=train, val=held_out, note=f"{_FRACTION:.0%} of the training images held out for tuning")


def choose(rates: tuple[float, ...], trials: Mapping[str, Sequence[RunResult]], data: ImageData, seed: int) -> Tuning:
    """For each label the learning rate with the best accuracy; of equals the first.

    Args:
        rates: as they were tried.
        trials: for each label the result with each rate.
        data: what the trials trained on.
        seed: of the trials.

    Raises:
        FoveateError: every trial of a plan diverged.
    """
    top1 = {label: tuple(result.scores.get("top1") for result in results) for label, results in trials.items()}
    chosen = {}
    for label, scores in top1.items():
        if all(score is None for score in scores):
            raise FoveateError(f"{label} diverged with every learning rate of {list(rates)}: try lower ones")
        best = max(score for score in scores if score is not None)
        chosen[label] = rates[scores.index(best)]
    return Tuning(rates, chosen, top1, len(data.train), len(data.val), seed)
