"""What the loop needs of the batches of a split, whatever a network is trained for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from foveate.training.freeze import Frozen
from foveate.training.input.loaders import Batches
from foveate.training.input.sampler import Batch

__all__ = ["Loader", "Pipeline"]


class Loader(Protocol):
    """Batches of one split, and how the model takes them."""

    @property
    def count(self) -> int:
        """Images in the split."""

    @property
    def batches(self) -> Batches:
        """Gives the batches that an order asks for."""

    @property
    def trunk(self) -> Frozen | None:
        """The part of the network whose features the batches are; None: they are pixels."""

    def whole(self, batch_size: int, rank: int, processes: int) -> Iterator[Batch]:
        """All images in their own order, or of every ``processes``-th from number ``rank`` on, for an evaluation."""

    def prepared(self, inputs: Tensor, device: torch.device) -> Tensor:
        """A batch on the device, as the network expects it."""

    def scores(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """What the network gives for a prepared batch."""

    def forward(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """What the network gives for a batch."""


class Pipeline(Protocol):
    """The batches of both splits, and what of the network is frozen."""

    @property
    def frozen(self) -> Frozen:
        """The frozen part of the network."""

    def train(self) -> Loader:
        """The training images, augmented."""

    def val(self) -> Loader:
        """The validation images, never augmented."""
