"""A network as a classifier: the adapter from ``nn.Module`` to the protocol."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.images import Preprocess
from foveate.model_info import device_and_dtype
from foveate.networks.class_names import class_names
from foveate.preserve import preserve_state
from foveate.scores import check_logits

__all__ = ["NetworkClassifier"]


class NetworkClassifier:
    """A network that is used in evaluation mode, on the device and in the dtype where it is, and left as found.

    Each call puts the network back as it was: a stream of predictions may be left standing at any image.

    Args:
        model: gives (B, K) scores.
        preprocess: how images are prepared; without it as the model says.
        image_size: side of the images in pixels, instead of the model's own.

    Attributes:
        preprocess: how images are prepared.
        batch: None: it takes any number of images.
    """

    def __init__(self, model: nn.Module, preprocess: Preprocess | None = None, image_size: int | None = None) -> None:
        self.model = model
        self.preprocess = preprocess or Preprocess.of(model, image_size)
        self.batch: int | None = None
        self._outputs: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return device_and_dtype(self.model)[0]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names that the network carries, or ImageNet's for weights of ImageNet-1k.

        They are its own where there are as many as outputs: a network that has not run yet runs on one image of zeros.
        """
        if self._outputs is None:
            self.logits(torch.zeros(1, len(self.preprocess.mean), *self.preprocess.size))
        return class_names(self.model, self._outputs or 0) or None

    def logits(self, images: Tensor) -> Tensor:
        """Scores before the softmax.

        Args:
            images: (B, C, H, W) float32, normalised, on any device.

        Returns:
            (B, K) in the network's dtype and on its device.

        Raises:
            FoveateError: the network gives something else than scores of two classes or more.
        """
        device, dtype = device_and_dtype(self.model)
        with preserve_state(self.model, evaluation=True, no_grad=True):
            # A copy: the network may work in place.
            found = check_logits(self.model(images.to(device, dtype, copy=True)))
        self._outputs = found.shape[1]
        return found
