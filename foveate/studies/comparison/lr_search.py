"""An equal tuning budget: each plan tries the same learning rates, on images held out of its training images.

The validation images, on which the plans are compared, take no part. Every plan gets the same number of trials, the
same trials, the same split and the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from foveate.data.division import stratified
from foveate.errors import FoveateError
from foveate.studies.comparison.run import RunResult
from foveate.training.tasks.choose import OpenedData
from foveate.training.tasks.classification import Classification
from foveate.training.tasks.task import Data, Task

__all__ = ["Tuning", "check_learning_rates", "choose", "tuning_data"]

_FRACTION = 0.2

DataT = TypeVar("DataT", bound=OpenedData)


@dataclass(frozen=True)
class Tuning:
    """What was tried.

    Args:
        learning_rates: each tried with every plan.
        chosen: for each label the one that was taken.
        scores: for each label the score in percent with each learning rate; None where the run diverged.
        train_images: images that the trials trained on.
        held_out: images that they were judged by, held out of the training images.
        seed: of the trials and the split.
    """

    learning_rates: tuple[float, ...]
    chosen: Mapping[str, float]
    scores: Mapping[str, tuple[float | None, ...]]
    train_images: int
    held_out: int
    seed: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Tuning:
        """The same from plain values, as JSON gives them."""
        values = dict(values)
        kept = values.pop("scores", None) or values.pop("top1")  # as it was called before there was another score
        scores = {label: tuple(of) for label, of in kept.items()}
        return cls(**{**values, "learning_rates": tuple(values["learning_rates"]), "scores": scores})

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


def tuning_data(data: DataT, seed: int, task: Task | None = None) -> DataT:
    """The training images alone, a fifth of each class held out of them for choosing.

    Args:
        data: of any task.
        seed: another one divides otherwise.
        task: of the data; without it classification.

    Raises:
        FoveateError: no class has two training images.
    """
    of_task: Task = task or Classification()
    strata = of_task.strata(data.train)
    first, second = stratified(data.train.names, strata, _FRACTION, seed)
    if not second:
        raise FoveateError(f"{data.name} has no class with two training images, so none can be held out for tuning")
    train, held_out = data.train.subset(first), replace(data.train.subset(second), name="val")
    # Each data set has parts of its own kind, which mypy does not follow through subset.
    parts: dict[str, Any] = {"train": train, "val": held_out}
    return replace(data, **parts, note=f"{_FRACTION:.0%} of the training images held out for tuning")


def choose(
    rates: tuple[float, ...], trials: Mapping[str, Sequence[RunResult]], data: Data, seed: int, score: str = "top1"
) -> Tuning:
    """For each label the learning rate with the best score; of equals the first.

    Args:
        rates: as they were tried.
        trials: for each label the result with each rate.
        data: what the trials trained on.
        seed: of the trials.
        score: its name among those of a run.

    Raises:
        FoveateError: every trial of a plan diverged.
    """
    found = {label: tuple(result.scores.get(score) for result in results) for label, results in trials.items()}
    chosen = {}
    for label, scores in found.items():
        if all(value is None for value in scores):
            raise FoveateError(f"{label} diverged with every learning rate of {list(rates)}: try lower ones")
        best = max(value for value in scores if value is not None)
        chosen[label] = rates[scores.index(best)]
    return Tuning(rates, chosen, found, len(data.train), len(data.val), seed)
