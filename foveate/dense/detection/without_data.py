"""What stands for detections where tensors have shapes and no data, so that sites and costs are those of any image.

How many regions a detector finds depends on the image and the weights. Without data as many are taken as can be left:
non-maximum suppression keeps every box. So a cost is that of the most regions that the network works on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from foveate.errors import FoveateError, first_line
from foveate.kernels.registration import library

__all__ = ["align", "suppress"]

_library = library()


def _all_of_them(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:  # noqa: ARG001 - the arguments of nms
    return boxes.new_empty(len(boxes), dtype=torch.int64)


_missing = ""
try:
    _define: Callable[[str], object] = _library.define  # torch does not annotate it
    _implement: Callable[..., object] = _library.impl
    _define("regions_kept(Tensor boxes, Tensor scores, float iou) -> Tensor")
    _implement("regions_kept", _all_of_them, "Meta")
except Exception as error:  # noqa: BLE001 - the interface is torch's, and a later one may fail in any way
    _missing = f"torch {torch.__version__} does not register the operation that counts it: {first_line(error)}"


def suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """(n,) which of n boxes non-maximum suppression keeps, best first: all of them.

    Args:
        boxes: (n, 4) on device "meta".
        scores: (n,).
        iou: threshold.

    Raises:
        FoveateError: this torch cannot count it.
    """
    if _missing:
        raise FoveateError(f"the regions of a detector cannot be counted: {_missing}")
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
