"""Images in batches, in an order and with an augmentation that depend on (seed, epoch, index) and on nothing else.

Pixels stay uint8 until a batch reaches the loop: four times less memory and traffic between processes than float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from foveate.errors import FoveateError
from foveate.images import Preprocess

if TYPE_CHECKING:
    from foveate.data.split import Split

__all__ = ["Batch", "Batches", "Held", "Order", "Source", "Streamed", "mix", "of_whole"]

Where: TypeAlias = tuple[int, int]
"""(epoch, index of an image)."""

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs (B, ...), uint8 pixels or float32 features; labels (B,) int64."""

_HUNG_SECONDS = 600


def mix(*parts: object) -> int:
    """A number in [0, 2^63) from a seed and what it is for: equal parts give equal numbers, others unrelated ones."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Order:
    """The batches of a run from some step on, each a list of (epoch, index). Iterating again gives the same.

    A last batch of one image is left out: BatchNorm over a 1x1 map cannot train on a single value. The order is
    another one in each epoch, so the image left out is too.

    Args:
        count: images.
        batch_size: images in a batch.
        seed: of the recipe.
        epochs: epochs of the whole run.
        start: (epoch, step within it) of the first batch.
    """

    def __init__(self, count: int, batch_size: int, seed: int, epochs: int, start: tuple[int, int] = (0, 0)) -> None:
        self.count, self.batch_size, self.seed, self.epochs, self.start = count, batch_size, seed, epochs, start
        alone = count % batch_size == 1 and count > 1 and batch_size > 1
        self.images_per_epoch = count - alone
        self.steps_per_epoch = -(-self.images_per_epoch // batch_size)

    def __iter__(self) -> Iterator[list[Where]]:
        first, step = self.start
        for epoch in range(first, self.epochs):
            generator = torch.Generator().manual_seed(mix(self.seed, "order", epoch))
            order = torch.randperm(self.count, generator=generator).tolist()[: self.images_per_epoch]
            for at in range(step * self.batch_size, len(order), self.batch_size):
                yield [(epoch, index) for index in order[at : at + self.batch_size]]
            step = 0


def of_whole(count: int, batch_size: int) -> list[list[Where]]:
    """Batches of all images in their own order."""
    return [[(0, index) for index in range(at, min(at + batch_size, count))] for at in range(0, count, batch_size)]


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

    def stream(self, augmentation: str = "none", seed: int = 0) -> Streamed:
        """Its batches, decoded when they are needed."""
        return Streamed(self.split, self.preprocess, augmentation, seed, self.workers)

    def normalised(self, inputs: Tensor, device: torch.device) -> Tensor:
        """uint8 pixels (B, C, H, W) as the float32 that the network expects; features (B, ...) as they are."""
        inputs = inputs.to(device, non_blocking=True)
        if inputs.dtype == torch.uint8:
            from torchvision.transforms.v2 import functional as transform

            mean, std = list(self.preprocess.mean), list(self.preprocess.std)
            inputs = transform.normalize(transform.to_dtype(inputs, torch.float32, scale=True), mean, std)
        return inputs


class Batches(Protocol):
    """Gives the batches that are asked for."""

    def __call__(self, order: Any) -> Iterator[Batch]:
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

    def __call__(self, order: Any) -> Iterator[Batch]:
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
    """Batches that are decoded when they are needed, by worker processes when there are any.

    Args:
        split: the images.
        preprocess: of the model.
        augmentation: a name of ``Recipe.augmentation``.
        seed: of the recipe.
        workers: processes; 0 decodes in this one.
    """

    def __init__(self, split: Split, preprocess: Preprocess, augmentation: str, seed: int, workers: int) -> None:
        self.images = _Images(split, preprocess, augmentation, seed)
        self.workers = workers

    def __call__(self, order: Any) -> Iterator[Batch]:
        """Batches in an order.

        Raises:
            FoveateError: an image cannot be read (its file is named), or a worker process died.
        """
        loader: DataLoader[Any] = DataLoader(
            self.images,
            batch_sampler=order,
            num_workers=self.workers,
            collate_fn=_collate,
            timeout=_HUNG_SECONDS if self.workers else 0,
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
    def __init__(self, split: Split, preprocess: Preprocess, augmentation: str, seed: int) -> None:
        self.split, self.preprocess, self.augmentation, self.seed = split, preprocess, augmentation, seed
        self.transform = _transform(augmentation, preprocess)
        # A random crop needs more pixels than the network's input has; more than four times as many it never shows.
        self.at_least = 4 * max(preprocess.size) if self.transform else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: Where) -> tuple[Tensor, int] | FoveateError:
        epoch, index = where
        seed = mix(self.seed, epoch, index)
        try:
            image = self.split.load(index, self.at_least)
        except FoveateError as error:
            # As a value: an exception raised in a worker comes back wrapped in the text of its traceback.
            return error
        if self.transform is None:
            pixels = _pixels(self.preprocess.view(image), self.preprocess)
            if self.augmentation == "flip" and _is_flipped(seed):
                pixels = pixels.flip(-1)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                pixels = _pixels(self.transform(image), self.preprocess)
        return pixels, self.split.label(index)


def _is_flipped(seed: int) -> bool:
    return bool(seed & 1)


def _transform(augmentation: str, preprocess: Preprocess) -> Any:
    """PIL image -> PIL image, drawing from the global random numbers; None for what needs no random crop."""
    if augmentation not in ("standard", "randaugment"):
        return None
    from torchvision.transforms import InterpolationMode, v2

    steps: list[Any] = [
        v2.RandomResizedCrop(preprocess.size, interpolation=InterpolationMode(preprocess.interpolation)),
        v2.RandomHorizontalFlip(),
    ]
    if augmentation == "randaugment":
        steps.append(v2.RandAugment(fill=[round(255 * mean) for mean in preprocess.mean] * (4 - len(preprocess.mean))))
    return v2.Compose(steps)


def _pixels(image: Image.Image, preprocess: Preprocess) -> Tensor:
    from torchvision.transforms.v2 import functional as transform

    return transform.pil_to_tensor(image.convert("L") if len(preprocess.mean) == 1 else image)


def _collate(items: list[tuple[Tensor, int] | FoveateError]) -> Batch | FoveateError:
    for item in items:
        if isinstance(item, FoveateError):
            return item
    pixels, labels = zip(*items, strict=True)
    return torch.stack(pixels), torch.tensor(labels)
