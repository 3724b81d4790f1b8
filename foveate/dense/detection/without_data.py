"""What stands for detections where tensors have shapes and no data, so that sites and costs are those of any image.

How many regions a detector finds depends on the image and the weights. Without data as many are taken as can be left:
non-maximum suppression keeps every box. So a cost is that of the most regions that the network works on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from foveate.kernels.registration import library, registering

__all__ = ["align", "suppress"]

_library = library()


def _all_of_them(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:  # noqa: ARG001 - the arguments of nms
    return boxes.new_empty(len(boxes), dtype=torch.int64)


with registering("regions_kept"):
    _define: Callable[[str], object] = _library.define  # torch does not annotate it
    _implement: Callable[..., object] = _library.impl
    _define("regions_kept(Tensor boxes, Tensor scores, float iou) -> Tensor")
    _implement("regions_kept", _all_of_them, "Meta")


def suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """(n,) which of n boxes non-maximum suppression keeps, best first: all of them.

    Args:
        boxes: (n, 4) on device "meta".
        scores: (n,).
        iou: threshold.
    """
    kept: Tensor = torch.ops.foveate.regions_kept(boxes, scores, iou)
    return kept


def align(maps: Sequence[Tensor], strides: Sequence[int], regions: int, size: int) -> Tensor:
    """(regions, C, size, size), the values of regions that are shared out evenly among feature maps.

    Args:
        maps: (B, C, h_l, w_l) each, on device "meta".
        strides: of each.
        regions: how many, of all images together.
        size: of the grid in each region.
    """
    parts = [regions // len(maps) + (level < regions % len(maps)) for level in range(len(maps))]
    found = [
        roi_align(x, x.new_empty(part, 5), size, 1 / stride, sampling_ratio=2)
        for x, stride, part in zip(maps, strides, parts, strict=True)
    ]
    return torch.cat(found)
