"""A segmentation network seen as a classifier: the score of a class is the sum of its scores over a region.

Vinogradova, Dibrov, Myers: Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping
(Seg-Grad-CAM), AAAI 2020, https://arxiv.org/abs/2002.11434

    y^c = sum over (i, j) in M of y^c_ij        then as Grad-CAM, with y^c in the place of the logit

M is the set of pixels that the map is to explain: those predicted as the class, all, or given ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.preserve import preserve_state
from foveate.scores import pixel_scores

__all__ = ["REGIONS", "Region", "classes_and_shares", "predicted_pixels", "region_scores", "sums_over"]

REGIONS = ("predicted", "image")


class Region:
    """The pixels whose scores are summed.

    Args:
        given: "predicted" (None is the same): for each class the pixels that are predicted as it; "image": all; or a
            mask (H, W) or (B, H, W), true where a pixel belongs to the region. It is brought to the scores' size.
        count: how many images there are.

    Raises:
        FoveateError: it is something else.
    """

    def __init__(self, given: Any, count: int) -> None:
        self.name, self.mask = "predicted", None
        if given is None or isinstance(given, str):
            if given is not None and given not in REGIONS:
                raise FoveateError(f"region={given!r}: {near(given, REGIONS)}; or give a mask (H, W) of the pixels")
            self.name = given or "predicted"
            return
        try:
            mask = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise FoveateError(f"region={given!r}: {near('', REGIONS)}; or give a mask (H, W) of the pixels") from error
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.ndim != 3 or len(mask) not in (1, count):
            raise FoveateError(
                f"region of the shape {tuple(torch.as_tensor(given).shape)}: give a mask (H, W), or ({count}, H, W) "
                "with one for each image"
            )
        self.name, self.mask = "given", (mask != 0).float().expand(count, -1, -1)
        if not self.mask.any((1, 2)).all():
            raise FoveateError("region: a mask has no pixel; mark at least one in each image")

    @property
    def text(self) -> str:
        """What is said of it beside a map."""
        texts = {"predicted": "sum over the pixels predicted so", "image": "sum over the image"}
        return texts.get(self.name, "sum over the region")

    def check(self, classes: Tensor, chosen: Sequence[int], names: Sequence[str]) -> None:
        """Make sure that there are pixels to explain.

        Args:
            classes: (B, h, w), what is predicted for each pixel.
            chosen: the class of each image.
            names: of the images.

        Raises:
            FoveateError: no pixel of an image is predicted as its class.
        """
        for index, label in enumerate(chosen):
            if self.name == "predicted" and not (classes[index] == label).any():
                raise FoveateError(
                    f"{names[index]}: no pixel is predicted as class {label}, so there is none to explain: name "
                    "another target, or region='image', or a mask"
                )

    def of(self, classes: Tensor, count: int, start: int, stop: int) -> Tensor:
        """(B, K or 1, h, w) bool, whether a pixel belongs to the region of each class.

        Args:
            classes: (B, h, w), what is predicted for each pixel.
            count: K.
            start: number of the first image.
            stop: number of the last one, and 1.
        """
        if self.mask is not None:
            part = self.mask[start:stop, None].to(classes.device)
            # Shrunk, a pixel belongs to the region if any of those that fall into it does: nothing small is lost.
            fewer = [min(have, want) for have, want in zip(part.shape[-2:], classes.shape[-2:], strict=True)]
            part = F.adaptive_max_pool2d(part, fewer)
            return F.interpolate(part, classes.shape[-2:], mode="nearest-exact") > 0
        if self.name == "image":
            return torch.ones_like(classes, dtype=torch.bool)[:, None]
        return classes[:, None] == torch.arange(count, device=classes.device).view(1, -1, 1, 1)


def predicted_pixels(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The class of each pixel (B, h, w), and of each image the share of its pixels of each class (B, K)."""
    with preserve_state(model, evaluation=True, no_grad=True):
        scores = pixel_scores(model(images.clone())).float()
    return classes_and_shares(scores)


def classes_and_shares(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of scores (B, K, h, w) the class of each pixel (B, h, w), and the share of the pixels of each class (B, K)."""
    classes = scores.argmax(1)
    shares = torch.stack([(classes == label).float().mean((1, 2)) for label in range(scores.shape[1])], 1)
    return classes, shares


@contextlib.contextmanager
def region_scores(
    model: nn.Module, region: Region, classes: Tensor, chosen: Sequence[int], start: int, names: Sequence[str]
) -> Iterator[None]:
    """Inside, a segmentation network gives (B, K): for each class the sum of its scores over the region.

    Args:
        model: gives scores (B, K, h, w).
        region: whose pixels count.
        classes: (B, h, w), what is predicted.
        chosen: the class of each image that will be asked for.
        start: number of the first image.
        names: of the images.

    Raises:
        FoveateError: no pixel of an image is predicted as its class.
    """
    size = len(classes)
    region.check(classes, chosen, names)

    with sums_over(model, size, lambda count: region.of(classes, count, start, start + size)):
        yield


@contextlib.contextmanager
def sums_over(model: nn.Module, images: int, inside: Callable[[int], Tensor]) -> Iterator[None]:
    """Inside, a segmentation network gives (B, K) for B images: the sum of each class's scores over some pixels.

    Args:
        model: gives scores (B, K, h, w).
        images: B.
        inside: is called with K, and gives (B, K or 1, h, w) bool, the pixels that count.
    """

    def hook(_: nn.Module, __: object, output: object) -> Tensor:
        scores = pixel_scores(output)
        if scores.is_meta or len(scores) != images:  # a pass that only looks for shapes
            return scores.sum((2, 3))
        return (scores * inside(scores.shape[1])).sum((2, 3))

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
