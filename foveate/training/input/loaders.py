"""Images in batches, in an order and with an augmentation that depend on (seed, epoch, index) and on nothing else.

Pixels stay uint8 until a batch reaches the loop: four times less memory and traffic between processes than float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from foveate.errors import FoveateError
from foveate.images import Preprocess, pixels_of
from foveate.training.input.random_crops import RandomCrops
from foveate.training.input.sampler import Batch, Where, mix, seed_draws

if TYPE_CHECKING:
    from foveate.data.split import Split
    from foveate.training.input.image_cache import Decoded

__all__ = ["Augment", "Batches", "Held", "Source", "Streamed", "at_least", "load_batches", "normalised"]

_HUNG_SECONDS = 600


@dataclass(frozen=True)
class Augment:
    """What is done to a training image.

    Args:
        kind: a name of ``Recipe.augmentation``.
        seed: of the recipe.
        operations: of RandAugment.
        magnitude: of RandAugment.
    """

    kind: str = "none"
    seed: int = 0
    operations: int = 2
    magnitude: int = 9

    @property
    def crops(self) -> bool:
        """Whether it cuts out a random part, so that nothing but the decoded picture can be kept."""
        return self.kind in ("standard", "randaugment")


@dataclass(frozen=True)
class Source:
    """Where a split's batches come from.

    Args:
        split: the images.
        fingerprint: of the data set that it belongs to.
        preprocess: of the model.
        workers: processes that load images; 0 loads in this one.
    """

    split: Split
    fingerprint: str
    preprocess: Preprocess
    workers: int = 0

    def stream(self, augment: Augment | None = None, decoded: Decoded | None = None) -> Streamed:
        """Its batches, made when they are needed, from decoded images where there are some."""
        return Streamed(self.split, self.preprocess, augment or Augment(), self.workers, decoded)

    def normalised(self, inputs: Tensor, device: torch.device) -> Tensor:
        """uint8 pixels (B, C, H, W) as the float32 that the network expects; features (B, ...) as they are."""
        return normalised(inputs, self.preprocess, device)


class Batches(Protocol):
    """Gives the batches that are asked for."""

    def __call__(self, order: Iterable[list[Where]]) -> Iterator[Batch]:
        """``order`` iterates over lists of (epoch, index)."""


class Held:
    """Batches out of memory.

    Args:
        views: (V, N, ...): V = 1, or 2 with the second made from the images flipped left to right.
        labels: (N,).
        seed: of the recipe; decides who is flipped.
        flip: flip pixels (V = 1), or choose among two views; without it the first view is taken.
    """

    def __init__(self, views: Tensor, labels: Sequence[int], seed: int = 0, *, flip: bool = False) -> None:
        self.views, self.labels, self.seed, self.flip = views, torch.tensor(labels), seed, flip

    def __call__(self, order: Iterable[list[Where]]) -> Iterator[Batch]:
        """Batches in an order."""
        for where in order:
            indices = torch.tensor([index for _, index in where])
            inputs = self.views[0, indices]
            if self.flip:
                flipped = torch.tensor([_is_flipped(mix(self.seed, *at)) for at in where])
                other = self.views[1, indices] if len(self.views) > 1 else inputs.flip(-1)
                inputs = torch.where(flipped.view(-1, *[1] * (inputs.ndim - 1)), other, inputs)
            yield inputs, self.labels[indices]


class Streamed:
    """Batches that are made when they are needed, by worker processes when there are any.

    Args:
        split: the images.
        preprocess: of the model.
        augment: what is done to each image.
        workers: processes; 0 decodes in this one.
        decoded: the images, where they are kept.
    """

    def __init__(
        self, split: Split, preprocess: Preprocess, augment: Augment, workers: int, decoded: Decoded | None = None
    ) -> None:
        self.images = _Images(split, preprocess, augment, decoded)
        self.workers = workers
        self.crops: RandomCrops | None = None
        if decoded is not None and not workers and augment.kind == "standard":
            self.crops = RandomCrops(split, preprocess, augment.seed, decoded)

    def __call__(self, order: Iterable[list[Where]]) -> Iterator[Batch]:
        """Batches in an order.

        Raises:
            FoveateError: an image cannot be read (its file is named), or a worker process died.
        """
        return self.crops(order) if self.crops else load_batches(self.images, order, self.workers, _collate)


def load_batches(
    images: Dataset[Any], order: Iterable[list[Where]], workers: int, collate: Callable[[list[Any]], Any]
) -> Iterator[Batch]:
    """Batches in an order, loaded by worker processes when there are any.

    Args:
        images: gives an item for (epoch, index), or a FoveateError as a value.
        order: iterates over lists of (epoch, index).
        workers: processes; 0 loads in this one.
        collate: makes a batch of items, or gives the error among them.

    Raises:
        FoveateError: one of the items is an error, or a worker process died.
    """
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        timeout=_HUNG_SECONDS if workers else 0,
        generator=torch.Generator(),  # else the loader draws from the caller's random numbers
    )
    try:
        for batch in loader:
            if isinstance(batch, FoveateError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise FoveateError(f"a process that loads images failed ({reason}): try workers=0") from error


class _Images(Dataset[Any]):
    def __init__(self, split: Split, preprocess: Preprocess, augment: Augment, decoded: Decoded | None) -> None:
        self.split, self.preprocess, self.augment, self.decoded = split, preprocess, augment, decoded
        self.transform = _transform(augment, preprocess)
        self.at_least = at_least(augment, preprocess)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: Where) -> tuple[Tensor, int] | FoveateError:
        epoch, index = where
        seed = mix(self.augment.seed, epoch, index)
        try:
            decoded = self.decoded
            image = decoded.image(index) if decoded is not None else self.split.load(index, self.at_least)
        except FoveateError as error:
            # As a value: an exception raised in a worker comes back wrapped in the text of its traceback.
            return error
        if self.transform is None:
            pixels = pixels_of(self.preprocess.view(image), self.preprocess)
            if self.augment.kind == "flip" and _is_flipped(seed):
                pixels = pixels.flip(-1)
        else:
            state = torch.get_rng_state()
            try:
                seed_draws(seed)
                pixels = pixels_of(self.transform(image), self.preprocess)
            finally:
                torch.set_rng_state(state)
        return pixels, self.split.label(index)


def _is_flipped(seed: int) -> bool:
    return bool(seed & 1)


def at_least(augment: Augment, preprocess: Preprocess) -> int | None:
    """Pixels that a side of a decoded picture must keep; None: all.

    A random crop needs more pixels than the network's input has; more than four times as many it never shows.
    """
    return 4 * max(preprocess.size) if augment.crops else None


def _transform(augment: Augment, preprocess: Preprocess) -> Callable[[Image.Image], Image.Image] | None:
    """PIL image -> PIL image, drawing from the global random numbers; None for what needs no random crop."""
    if not augment.crops:
        return None
    from torchvision.transforms import InterpolationMode, v2

    steps: list[object] = [
        v2.RandomResizedCrop(preprocess.size, interpolation=InterpolationMode(preprocess.interpolation)),
        v2.RandomHorizontalFlip(),
    ]
    if augment.kind == "randaugment":
        grey = [round(255 * mean) for mean in preprocess.mean] * (4 - len(preprocess.mean))
        steps.append(v2.RandAugment(augment.operations, augment.magnitude, fill=grey))
    transform: Callable[[Image.Image], Image.Image] = v2.Compose(steps)
    return transform


def normalised(inputs: Tensor, preprocess: Preprocess, device: torch.device) -> Tensor:
    """uint8 pixels (B, C, H, W) as the float32 that the network expects; what is not uint8 as it is.

    Args:
        inputs: on any device.
        preprocess: of the network.
        device: where the result is.
    """
    inputs = inputs.to(device, non_blocking=True)
    if inputs.dtype == torch.uint8:
        from torchvision.transforms.v2 import functional as transform

        mean, std = list(preprocess.mean), list(preprocess.std)
        inputs = transform.normalize(transform.to_dtype(inputs, torch.float32, scale=True), mean, std)
    return inputs


def _collate(items: list[tuple[Tensor, int] | FoveateError]) -> Batch | FoveateError:
    for item in items:
        if isinstance(item, FoveateError):
            return item
    pixels, labels = zip(*items, strict=True)
    return torch.stack(pixels), torch.tensor(labels)
