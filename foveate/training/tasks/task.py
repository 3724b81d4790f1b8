"""What differs between the tasks that a network is trained for; the loop knows of nothing else.

A task says how a model is made ready for the data, how batches are made, what is minimised, what is measured and which
of two evaluations is the better one. It is an object without state: a new task is a new class with these methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from foveate.images import Preprocess
from foveate.io import JsonObject
from foveate.training.context import RunContext
from foveate.training.input.protocols import Pipeline
from foveate.training.input.sampler import Batch
from foveate.training.recipes.recipe import Recipe

__all__ = ["Data", "LossFunction", "Measured", "Part", "Task"]


class Part(Protocol):
    """One part of a data set."""

    @property
    def name(self) -> str:
        """``train`` or ``val``."""

    def __len__(self) -> int:
        """Images in it."""


class Data(Protocol):
    """A data set for any task."""

    @property
    def name(self) -> str:
        """Of the data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""

    @property
    def fingerprint(self) -> str:
        """Of everything that the data set holds."""

    @property
    def train(self) -> Part:
        """What the network learns from."""

    @property
    def val(self) -> Part:
        """What it is measured on."""


class Measured(Protocol):
    """An evaluation of any task."""

    curves: ClassVar[Mapping[str, str]]
    """Columns of the history that are drawn in notebooks, with what they are called."""

    @property
    def headline(self) -> str:
        """The most important numbers, in a line."""

    def to_dict(self, classes: Any = None) -> JsonObject:
        """Every number, for JSON."""


class LossFunction(Protocol):
    """What a training step minimises."""

    def images(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a model's forward pass may be given other images than the batch has."""

    def loss(self, scores: Any, labels: Tensor) -> Tensor:
        """() of a batch, averaged over its images."""


class Task(Protocol):
    """What a network is trained for.

    Attributes:
        name: in messages.
        columns: of ``summary.csv``.
        best: the column by which ``model_best`` is chosen: the higher the better.
    """

    name: str
    columns: tuple[str, ...]
    best: str

    def create(self, name: str, data: Any, pretrained: bool) -> nn.Module:
        """A network for the data by the name of a network, or of its trunk."""

    def strata(self, part: Any) -> Sequence[int]:
        """For each image of a part the kind whose share stays the same where the part is divided."""

    def check(self, recipe: Recipe, has_teacher: bool) -> None:
        """Refuse what does not go with the task."""

    def adapt(self, model: nn.Module, data: Any, recipe: Recipe, say: Callable[[str], None]) -> Preprocess:
        """Make a model ready for the data, in place.

        Returns:
            How images are prepared for the model.
        """

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """Dotted names of the modules that give the scores: what is trained where the trunk is frozen."""

    def pipeline(self, model: nn.Module, data: Any, preprocess: Preprocess, context: RunContext) -> Pipeline:
        """The batches of both splits."""

    def objective(self, model: nn.Module, recipe: Recipe, *, cached: bool, has_teacher: bool) -> LossFunction:
        """What is minimised.

        Args:
            model: what is trained.
            recipe: of the run.
            cached: the model is given a frozen trunk's features and no images.
            has_teacher: a teacher helps.
        """

    def mixing(self, recipe: Recipe, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """What mixes the images of a batch with each other, or None."""

    def evaluate(
        self,
        forward: Callable[[Tensor], Any],
        batches: Iterable[Batch],
        gather: Callable[[Tensor], Tensor],
        classes: tuple[str, ...],
    ) -> Any:
        """Measure a model.

        Args:
            forward: what the model gives for the inputs of a batch.
            batches: of this process.
            gather: from rows for the images of this process to rows for all images, in their order.
            classes: names of the classes.

        Returns:
            An evaluation: see ``Measured``.
        """

    def row(self, evaluation: Any) -> dict[str, float]:
        """The columns of the history that an evaluation fills."""

    def line(self, row: Mapping[str, float]) -> str:
        """What is printed of an epoch's evaluation."""

    def notes(self, evaluation: Any) -> tuple[str, ...]:
        """What a reader of the numbers should know."""
