"""A large image seen by a segmentation network in windows, as ``predict`` shows it, and one map of all of it.

The scores of a pixel are the mean of those of the windows that it lies in. For the methods with gradients the feature
maps of all windows are taken as one: y is the sum over all windows of the class's scores in the region, alpha_k is the
mean of the gradient over the positions of all windows. Each window's map is then enlarged to its pixels, and where
windows overlap the mean is taken. So one scale holds for the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.explanations.dense.segmentation import sums_over
from foveate.explanations.gradcam import mean_gradient
from foveate.explanations.gradcam_pp import channel_weights
from foveate.explanations.gradients import layer_gradients
from foveate.explanations.hirescam import own_gradient
from foveate.explanations.layers import Layer
from foveate.explanations.result import Map
from foveate.preserve import preserve_state
from foveate.scores import pixel_scores
from foveate.whole_images import window_starts

__all__ = ["Windows", "scores_in_windows", "weighted_map_in_windows"]

_AT_ONCE = 8  # windows in one pass
_METHODS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor], bool]] = {
    "gradcam": ("Grad-CAM", mean_gradient, True),
    "gradcam++": ("Grad-CAM++", channel_weights, True),
    "hirescam": ("HiResCAM", own_gradient, False),
}


class Windows:
    """The windows of images of one size, each of which overlaps its neighbour by a third.

    Args:
        side: of a window, in pixels.
        size: height and width of the images.

    Raises:
        FoveateError: a window has no pixel.
    """

    def __init__(self, side: int, size: tuple[int, int]) -> None:
        if type(side) is not int or side < 1:
            raise FoveateError(f"window={side!r}: give the side of a window in pixels, at least 1")
        self.height, self.width = size
        self.tall, self.wide = min(side, self.height), min(side, self.width)
        self.corners = [
            (top, left)
            for top in window_starts(self.height, self.tall)
            for left in window_starts(self.width, self.wide)
        ]

    def cut(self, x: Tensor) -> Tensor:
        """(1, C, H, W) -> (N, C, h, w), the windows."""
        return torch.cat([x[..., top : top + self.tall, left : left + self.wide] for top, left in self.corners])

    def join(self, values: Tensor) -> Tensor:
        """(N, C, h, w) of any h and w -> (1, C, H, W): enlarged to the windows' pixels, the mean where they overlap."""
        large = F.interpolate(values, (self.tall, self.wide), mode="bilinear", align_corners=False)
        total = values.new_zeros(1, values.shape[1], self.height, self.width)
        times = values.new_zeros(1, 1, self.height, self.width)
        for (top, left), one in zip(self.corners, large, strict=True):
            total[0, :, top : top + self.tall, left : left + self.wide] += one
            times[..., top : top + self.tall, left : left + self.wide] += 1
        return total / times


def _parts(count: int) -> list[slice]:
    return [slice(first, first + _AT_ONCE) for first in range(0, count, _AT_ONCE)]


def scores_in_windows(model: nn.Module, windows: Windows, views: Tensor) -> Tensor:
    """(1, K, H, W), the mean scores of the windows that a pixel lies in. The model is left as found."""
    with preserve_state(model, evaluation=True, no_grad=True):
        found = [pixel_scores(model(views[part].clone())).float() for part in _parts(len(views))]
    return windows.join(torch.cat(found))


def weighted_map_in_windows(
    method: str, model: nn.Module, windows: Windows, views: Tensor, inside: Tensor, layer: Layer, label: int
) -> Map:
    """One map of one image: (1, H, W).

    Args:
        method: with gradients.
        model: left as found.
        windows: of the image.
        views: (N, C, h, w), the image in them.
        inside: (N, K or 1, h, w) bool, the region in them.
        layer: whose feature maps are looked at.
        label: the class.

    Raises:
        FoveateError: as ``layer_gradients``.
    """
    title, weights, positive = _METHODS[method]
    maps, gradients = [], []
    for part in _parts(len(views)):

        def own(_: int, of: Tensor = inside[part]) -> Tensor:
            return of

        with sums_over(model, len(views[part]), own):
            found = layer_gradients(model, views[part], layer, [label] * len(views[part]))
        maps.append(found.maps)
        gradients.append(found.gradient)
    every, gradient = _side_by_side(maps), _side_by_side(gradients)
    values = (weights(every, gradient) * every).sum(dim=1)
    values = F.relu(values) if positive else values
    apart = torch.stack(values[0].chunk(len(views), dim=1))[:, None]
    return Map(f"{title} {layer.name}", windows.join(apart)[:, 0].float().cpu(), layer.name)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """(N, K, h, w) in parts -> (1, K, h, N w)."""
    return torch.cat(list(torch.cat(list(parts))), dim=2)[None]
