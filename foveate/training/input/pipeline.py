"""Which batches the loop gets: streamed from disk, out of memory, or the frozen trunk's features."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.training.context import RunContext
from foveate.training.freeze import Frozen, find_frozen, is_chain, tail, trunk_features
from foveate.training.input.feature_cache import hold_decoded, hold_features, hold_images
from foveate.training.input.loaders import Augment, Batches, Held, Source, at_least
from foveate.training.input.sampler import Batch, of_whole

if TYPE_CHECKING:
    from foveate.data.split import ImageData, Split

__all__ = ["InputPipeline", "SplitLoader"]

_SAMPLE = 4  # images to try the network on


@dataclass(frozen=True)
class SplitLoader:
    """Batches of one split, and how the model takes them.

    Args:
        source: the split.
        batches: of uint8 pixels, or of the trunk's features.
        trunk: the part of the network that the features are made by; None: the batches are pixels.
        channels_last: the memory format of the model.
    """

    source: Source
    batches: Batches
    trunk: Frozen | None
    channels_last: bool

    @property
    def count(self) -> int:
        """Images in the split."""
        return len(self.source.split)

    def whole(self, batch_size: int, rank: int, processes: int) -> Iterator[Batch]:
        """All images in their own order, or of every ``processes``-th from number ``rank`` on."""
        return self.batches(of_whole(self.count, batch_size, rank, processes))

    def prepared(self, inputs: Tensor, device: torch.device) -> Tensor:
        """A batch on the device: pixels normalised, features as they are."""
        return self.source.normalised(inputs, device)

    def scores(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Scores (B, K) for a prepared batch."""
        inputs = _in_memory_format(inputs, self.channels_last)
        with tail(model, self.trunk) if self.trunk is not None else contextlib.nullcontext():
            scores: Tensor = model(inputs)
        return scores

    def forward(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Scores (B, K) for a batch."""
        return self.scores(model, self.prepared(inputs, device_and_dtype(model)[0]))


def _in_memory_format(inputs: Tensor, channels_last: bool) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if channels_last and inputs.ndim == 4 else inputs


class InputPipeline:
    """Finds out what of a network is frozen, and what of the data and of the frozen part can be kept in memory.

    Args:
        model: adapted to the data; left as found.
        data: both splits.
        preprocess: of the model.
        context: of its recipe, what is frozen, the augmentation, and whether to cache; of its processes the first on a
            machine fills a cache on disk.

    Raises:
        FoveateError: what the recipe freezes cannot be frozen, or an image cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        preprocess: Preprocess,
        context: RunContext,
    ) -> None:
        self.model, self.data, self.preprocess, self.context = model, data, preprocess, context
        self.recipe, self.bar, self.cache = context.recipe, context.bar, context.cache
        recipe = self.recipe
        first = [preprocess(data.train.load(index)) for index in range(min(_SAMPLE, len(data.train)))]
        device = device_and_dtype(model)[0]
        sample = _in_memory_format(torch.stack(first).to(device), recipe.channels_last)
        self.frozen = find_frozen(model, recipe.freeze, sample)
        self._features: Tensor | None = None  # of the sample, where features can be cached
        if recipe.cache and recipe.freeze:
            if is_chain(model, self.frozen, sample):
                self._features = trunk_features(model, self.frozen, sample)
            else:
                self.bar.line(f"no chain up to {self.frozen.cut!r}: the frozen part runs in each step, without a cache")

    def train(self) -> SplitLoader:
        """The training images, augmented."""
        recipe = self.recipe
        augment = Augment(recipe.augmentation, recipe.seed, recipe.randaugment_operations, recipe.randaugment_magnitude)
        return self._loader(self.data.train, augment)

    def val(self) -> SplitLoader:
        """The validation images, never augmented."""
        return self._loader(self.data.val, Augment())

    def _loader(self, split: Split, augment: Augment) -> SplitLoader:
        recipe = self.recipe
        source = Source(split, self.data.fingerprint, self.preprocess, recipe.workers)
        flip, labels, decoded = augment.kind == "flip", split.labels, None
        if recipe.cache and augment.crops:
            with self.context.group.main_first():
                decoded = hold_decoded(self.cache, source, at_least(augment, self.preprocess), self.bar)
            if decoded is None:
                self.bar.line(f"the {split.name} images are too large for the cache: they are decoded in each epoch")
        elif recipe.cache:
            if self._features is not None:
                kept = (self.cache, source, self.model, self.frozen, self.bar)
                views = hold_features(*kept, flip=flip, like=self._features)
                if views is not None:
                    held = Held(views, labels, recipe.seed, flip=flip)
                    return SplitLoader(source, held, self.frozen, recipe.channels_last)
                self.bar.line(f"the features of the {split.name} images are too large for the cache")
            views = hold_images(self.cache, source, self.bar)
            if views is not None:
                return SplitLoader(source, Held(views, labels, recipe.seed, flip=flip), None, recipe.channels_last)
        return SplitLoader(source, source.stream(augment, decoded), None, recipe.channels_last)
