"""What batches of images with label maps and of images with boxes share: how they are loaded, ordered and set up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.utils.data import Dataset

from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.training.context import RunContext
from foveate.training.freeze import find_frozen
from foveate.training.input.loaders import load_batches
from foveate.training.input.sampler import Batch, Where

__all__ = ["DensePipeline", "Stream", "by_size"]

LoaderT = TypeVar("LoaderT")


class Stream:
    """Examples in batches, by worker processes when there are any.

    Args:
        examples: each a value for the batch, or the error of an image that cannot be read.
        workers: processes that load images.
        collate: makes a batch from examples without errors.
    """

    def __init__(self, examples: Dataset[Any], workers: int, collate: Callable[[list[Any]], Any]) -> None:
        self.examples, self.workers, self.collate = examples, workers, collate

    def __call__(self, order: Any) -> Iterator[Batch]:
        """Batches in an order."""
        return load_batches(self.examples, order, self.workers, self._batch)

    def _batch(self, items: list[Any]) -> Any:  # a batch, or the first error
        return next((item for item in items if isinstance(item, FoveateError)), None) or self.collate(items)


def by_size(sizes: Sequence[tuple[int, int]], batch_size: int, rank: int, processes: int) -> list[list[Where]]:
    """The order of an evaluation, in batches: those of a batch have one size, and none is shown twice.

    Args:
        sizes: height and width of each image.
        batch_size: the most images of a batch.
        rank: number of this process, which takes every ``processes``-th image.
        processes: how many there are.
    """
    order: list[list[Where]] = []
    for index in range(rank, len(sizes), processes):
        last = order[-1] if order else []
        if last and len(last) < batch_size and sizes[last[0][1]] == sizes[index]:
            last.append((0, index))
        else:
            order.append([(0, index)])
    return order


class DensePipeline(Generic[LoaderT]):
    """The batches of both splits. Nothing is kept between epochs but what the system keeps of files.

    Args:
        model: adapted to the data; left as found.
        data: both splits.
        preprocess: of the model.
        context: of its recipe, what is frozen and the augmentation.
        head: dotted names of the modules that "trunk" does not freeze.

    Raises:
        FoveateError: what the recipe freezes cannot be frozen.
    """

    def __init__(
        self, model: nn.Module, data: Any, preprocess: Preprocess, context: RunContext, head: tuple[str, ...]
    ) -> None:
        self.data, self.preprocess, self.recipe = data, preprocess, context.recipe
        sample = torch.zeros(1, len(preprocess.mean), *preprocess.size, device=device_and_dtype(model)[0])
        self.frozen = find_frozen(model, self.recipe.freeze, sample, head=head)

    def train(self) -> LoaderT:
        """The training images, augmented."""
        return self._loader(self.data.train, self.recipe.augmentation)

    def val(self) -> LoaderT:
        """The validation images, never augmented."""
        return self._loader(self.data.val, None)

    def _loader(self, split: Any, kind: str | None) -> LoaderT:
        """Batches of a split; ``kind``: a name of ``Recipe.augmentation``, None for an evaluation."""
        raise NotImplementedError
