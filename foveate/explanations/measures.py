"""How much a map says about the prediction: pixels taken away and put back in its order, or the object's place.

Insertion and deletion: Petsiuk, Das, Saenko: RISE, BMVC 2018, https://arxiv.org/abs/1806.07421. Average drop and
increase: Chattopadhyay et al.: Grad-CAM++, WACV 2018, https://arxiv.org/abs/1710.11063. Pointing: Zhang et al.:
Top-down Neural Attention by Excitation Backprop, ECCV 2016, https://arxiv.org/abs/1608.00507.

All of them run the model on pictures that it was not trained on, so they compare maps with each other and with a random
map; they prove nothing alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["drop", "enlarged", "iou", "perturbation", "pixels_in_order", "pointing"]

Probabilities = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) -> (B, classes)."""


def enlarged(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (B, h, w) as large as the images, (B, H, W): bilinearly, as they are drawn."""
    return F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]


def pixels_in_order(maps: Tensor, seed: int = 0) -> Tensor:
    """For each pixel how many others come before it when the largest value comes first: (B, H, W) -> (B, H * W).

    Equal values come in a random order, the same for every map: a uniform map is a random one.
    """
    flat = maps.flatten(1)
    count = flat.shape[1]
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(flat.device)
    order = mixed[flat[:, mixed].argsort(dim=1, descending=True, stable=True)]
    ranks = torch.empty_like(order)
    return ranks.scatter_(1, order, torch.arange(count, device=flat.device).expand_as(order))


def perturbation(
    probabilities: Probabilities,
    images: Tensor,
    other: Tensor,
    maps: Tensor,
    classes: Tensor,
    steps: int,
    ends: tuple[Tensor, Tensor],
) -> Tensor:
    """The area under the class's probability while pixels of one picture give way to another's, best pixels first.

    With ``other`` empty pictures it is deletion (small is good), with empty pictures first and ``other`` the images it
    is insertion (large is good). The curve has steps + 1 points.

    Args:
        probabilities: the model.
        images: (B, C, H, W), what is there at first.
        other: (B, C, H, W), what is there at last.
        maps: (B, H, W).
        classes: (B,).
        steps: into how many equal parts the pixels are divided.
        ends: the class's probability in ``images`` and in ``other``, (B,) each: the same for every map.

    Returns:
        (B,), from 0 to 1.
    """
    ranks = pixels_in_order(maps).view(len(images), 1, *images.shape[2:])
    curve = [ends[0]]
    for step in range(1, steps):
        taken = ranks < round(step * maps[0].numel() / steps)
        mixed = torch.where(taken, other, images)
        curve.append(probabilities(mixed).gather(1, classes[:, None])[:, 0])
    return torch.trapezoid(torch.stack([*curve, ends[1]]), dx=1 / steps, dim=0)


def drop(
    probabilities: Probabilities, images: Tensor, empty: Tensor, maps: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """How much of the class's probability is lost when the picture shows through only where the map is bright.

    Args:
        probabilities: the model.
        images: (B, C, H, W).
        empty: (B, C, H, W), what is seen where the map is at its smallest.
        maps: (B, H, W); each is stretched to 0..1, a uniform one to 1.
        classes: (B,).

    Returns:
        (B,) max(0, p - p') / p, and (B,) whether p' > p, as 0 or 1.
    """
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    flat = high - low <= 1e-12 * high.abs()
    shown = torch.where(flat, 1.0, (maps - low) / (high - low).masked_fill(flat, 1.0))[:, None]
    before, after = (
        probabilities(pictures).gather(1, classes[:, None])[:, 0]
        for pictures in (images, empty + shown.to(images.dtype) * (images - empty))
    )
    return (before - after).clamp_min(0) / before.clamp_min(1e-30), (after > before).to(before.dtype)


def pointing(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the largest value lies in the mask, (B,) as 0 or 1: (B, H, W) and (B, H, W) bool."""
    best = pixels_in_order(maps).argmin(dim=1, keepdim=True)
    return masks.flatten(1).gather(1, best)[:, 0].float()


def iou(maps: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of the mask and as many of the brightest pixels as the mask has, (B,)."""
    inside = masks.flatten(1)
    chosen = pixels_in_order(maps) < inside.sum(dim=1, keepdim=True)
    return (chosen & inside).sum(dim=1) / (chosen | inside).sum(dim=1).clamp_min(1)
