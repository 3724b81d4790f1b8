"""Scores for each pixel of an image, whole or in windows, in one size or several, by a network or an exported file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.exporters.opened import ExportedSegmenter
from foveate.model_info import device_and_dtype
from foveate.networks.class_names import stored_names
from foveate.preserve import preserve_state
from foveate.scores import pixel_scores
from foveate.whole_images import WholeImage, window_starts

__all__ = ["NetworkPixels", "PixelModel", "TestTime", "image_scores", "open_pixels"]

_AT_ONCE = 8  # windows in one pass


class PixelModel(Protocol):
    """What gives scores for pixels: a network, or an exported file."""

    @property
    def preparation(self) -> WholeImage:
        """How images are prepared."""

    def names(self, count: int) -> tuple[str, ...]:
        """A name for each of ``count`` classes, or none."""

    def running(self) -> contextlib.AbstractContextManager[object]:
        """Inside, it may be run; what it was like comes back."""

    def scores(self, images: Tensor) -> Tensor:
        """(B, K, h, w) float32 on the CPU or the network's device, for normalised images (B, C, h, w)."""


class NetworkPixels:
    """A network.

    Args:
        network: for segmentation; left as found.
        image_size: the shorter side of what it sees; without it its own.
    """

    def __init__(self, network: nn.Module, image_size: int | None) -> None:
        self.network, self._preparation = network, WholeImage.of(network, image_size)
        self.device, self.dtype = device_and_dtype(network)

    @property
    def preparation(self) -> WholeImage:
        """How images are prepared."""
        return self._preparation

    def names(self, count: int) -> tuple[str, ...]:
        """Those that the network carries."""
        return stored_names(self.network, count)

    def running(self) -> contextlib.AbstractContextManager[object]:
        """In evaluation mode, without gradients."""
        return preserve_state(self.network, evaluation=True, no_grad=True)

    def scores(self, images: Tensor) -> Tensor:
        """What it gives."""
        return pixel_scores(self.network(images.to(self.device, self.dtype))).float()


@dataclass(frozen=True)
class TestTime:
    """How often and in which form an image is shown; the probabilities of all views are averaged.

    Args:
        flip: show it flipped left to right, too.
        scales: factors of the shorter side, one view for each.
        window: side in pixels of windows that the image is shown in, each overlapping its neighbour by a third; their
            scores are averaged where they overlap. None: the image at once.

    Raises:
        FoveateError: a scale is not positive, or a window has no pixel.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    window: int | None = None

    __test__ = False  # no test, whatever pytest takes the name for

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise FoveateError(f"scales={list(self.scales)}: give factors of the image's size, such as 0.75, 1, 1.25")
        if self.window is not None and self.window < 1:
            raise FoveateError(f"window={self.window}: give the side of a window in pixels, at least 1")

    @classmethod
    def of(cls, flip: bool, scales: Sequence[float], window: int | None) -> TestTime:
        """From a user's options; no scales are the image's own."""
        return cls(flip, tuple(map(float, scales)) or (1.0,), window)

    def refuse_for_others(self) -> None:
        """Make sure that nothing was asked for.

        Raises:
            FoveateError: another network was to see several views.
        """
        if not self.single:
            raise FoveateError(
                "flip=, scales= and window= are for segmentation networks, and this is another one: leave them out"
            )

    @property
    def single(self) -> bool:
        """Whether an image is shown once, whole, in its own size."""
        return not self.flip and self.scales == (1.0,) and self.window is None


def open_pixels(model: object, image_size: int | None) -> PixelModel:
    """A network or an exported file as something that gives scores for pixels.

    Raises:
        FoveateError: it is something else, or a file is asked for another size than it takes.
    """
    if isinstance(model, ExportedSegmenter):
        return model if image_size is None else model.sized(image_size)
    if isinstance(model, nn.Module):
        return NetworkPixels(model, image_size)
    raise FoveateError(f"a segmentation network is a torch.nn.Module or an exported file, not a {type(model).__name__}")


def image_scores(model: PixelModel, image: Image.Image, test_time: TestTime) -> Tensor:
    """Scores (1, K, H, W) float32 for each pixel of an image; of several views the logarithm of the mean probability.

    Args:
        model: running.
        image: of any size, RGB.
        test_time: how it is shown.

    Raises:
        FoveateError: the model cannot take an image of this size.
    """
    size = (image.height, image.width)
    if test_time.single:
        return _at(model.scores(model.preparation(image)[None]), size)
    total, views = None, 0
    for scale in test_time.scales:
        pixels = _scaled(model.preparation, scale)(image)[None]
        for view in (pixels, pixels.flip(-1))[: 1 + test_time.flip]:
            scores = _windowed(model, view, test_time.window)
            scores = _at(scores.flip(-1) if view is not pixels else scores, size)
            found = scores.softmax(1)
            total, views = found if total is None else total + found, views + 1
    if total is None:
        raise AssertionError("there is a scale")
    return (total / views).clamp_min(1e-30).log()


def _scaled(preparation: WholeImage, scale: float) -> WholeImage:
    if scale == 1:
        return preparation
    if preparation.exact:
        raise FoveateError("scales= are for files that take images of any size, and this one takes one size alone")
    height, width = (max(1, round(side * scale)) for side in preparation.preprocess.size)
    return replace(preparation, preprocess=replace(preparation.preprocess, size=(height, width)))


def _at(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores.float(), size, mode="bilinear", align_corners=False)


def _windowed(model: PixelModel, pixels: Tensor, window: int | None) -> Tensor:
    """Scores (1, K, h, w) of one image, the mean of the windows that a pixel lies in."""
    height, width = pixels.shape[-2:]
    if window is None or (window >= height and window >= width):
        return model.scores(pixels)
    tall, wide = min(window, height), min(window, width)
    corners = [(top, left) for top in window_starts(height, tall) for left in window_starts(width, wide)]
    total: Tensor | None = None
    times = torch.zeros(1, 1, height, width)
    for first in range(0, len(corners), _AT_ONCE):
        part = corners[first : first + _AT_ONCE]
        views = torch.cat([pixels[..., top : top + tall, left : left + wide] for top, left in part])
        found = _at(model.scores(views), (tall, wide))
        total = found.new_zeros(1, found.shape[1], height, width) if total is None else total
        for (top, left), scores in zip(part, found, strict=True):
            total[0, :, top : top + tall, left : left + wide] += scores
            times[..., top : top + tall, left : left + wide] += 1
    if total is None:
        raise AssertionError("there is a window")
    return total / times.to(total.device)
