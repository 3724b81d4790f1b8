"""The order of the images: it depends on (seed, epoch) and on nothing else, and is shared out among processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Batch", "Order", "Where", "images_in", "mix", "of_whole", "seed_draws"]

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs (B, ...), uint8 pixels or float32 features; labels (B,) int64."""

Where: TypeAlias = tuple[int, int]
"""(epoch, index of an image)."""


def images_in(batch: Batch) -> int:
    """How many images a batch has."""
    return len(batch[1])


def mix(*parts: object) -> int:
    """A number in [0, 2^63) from a seed and what it is for: equal parts give equal numbers, others unrelated ones."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_draws(seed: int, device: torch.device | None = None) -> None:
    """Seed torch's global random numbers of the CPU, and of a GPU that is in use.

    ``torch.manual_seed`` also queues a call, with a formatted stack, for every kind of device that is not: a
    millisecond each time, and memory that never comes back.
    """
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class Order:
    """The batches of a run from some step on, each a list of (epoch, index). Iterating again gives the same.

    A step trains on ``batch_size`` x ``accumulate`` x ``processes`` images, the same ones for equal products. Of these
    a process gets every ``processes``-th, in batches of ``batch_size``. BatchNorm over a 1x1 map cannot train on a
    single value: so a last step of one image is left out, and one of few images is shared by fewer processes. The order
    is another one in each epoch, so the image left out is too.

    Args:
        count: images.
        batch_size: images in a batch.
        seed: of the recipe.
        epochs: epochs of the whole run.
        start: (epoch, step within it) of the first batch.
        accumulate: batches of a process in a step.
        rank: which process this is.
        processes: how many there are.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        epochs: int,
        start: tuple[int, int] = (0, 0),
        *,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.count, self.batch_size, self.seed, self.epochs, self.start = count, batch_size, seed, epochs, start
        self.rank, self.processes = rank, processes
        self.step_size = batch_size * accumulate * processes
        alone = count % self.step_size == 1 and count > 1 and self.step_size > 1
        self.images_per_epoch = count - alone
        self.steps_per_epoch = -(-self.images_per_epoch // self.step_size)

    def __iter__(self) -> Iterator[list[Where]]:
        first, step = self.start
        for epoch in range(first, self.epochs):
            generator = torch.Generator().manual_seed(mix(self.seed, "order", epoch))
            order = torch.randperm(self.count, generator=generator).tolist()[: self.images_per_epoch]
            for at in range(step * self.step_size, len(order), self.step_size):
                images = order[at : at + self.step_size]
                share = [images[k] for k in self._share(len(images))]
                for size in self._sizes(len(share)):
                    yield [(epoch, index) for index in share[:size]]
                    share = share[size:]
            step = 0

    def images(self, step: int) -> int:
        """Images of all processes in a step of an epoch."""
        return min(self.step_size, self.images_per_epoch - step * self.step_size)

    def batches(self, step: int) -> int:
        """Batches of this process in a step of an epoch."""
        return len(self._sizes(len(self._share(self.images(step)))))

    def full_batches(self) -> int:
        """Batches of this process in an epoch that have as many images as the recipe says."""
        sizes = [self._sizes(len(self._share(self.images(step)))) for step in range(self.steps_per_epoch)]
        return sum(size == self.batch_size for of_step in sizes for size in of_step)

    def _share(self, images: int) -> range:
        """Which of a step's images are this process's."""
        busy = min(self.processes, max(1, images // min(2, self.batch_size)))
        return range(self.rank, images, busy) if self.rank < busy else range(0)

    def _sizes(self, share: int) -> list[int]:
        whole, rest = divmod(share, self.batch_size)
        sizes = [self.batch_size] * whole
        if rest == 1 and sizes:
            sizes[-1] += 1  # never a batch of one beside others
        elif rest:
            sizes.append(rest)
        return sizes


def of_whole(count: int, batch_size: int, rank: int = 0, processes: int = 1) -> list[list[Where]]:
    """Batches of all images in their own order, or of every ``processes``-th from number ``rank`` on."""
    mine = range(rank, count, processes)
    return [[(0, index) for index in mine[at : at + batch_size]] for at in range(0, len(mine), batch_size)]
