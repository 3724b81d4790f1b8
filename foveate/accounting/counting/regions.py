"""Element operations of what detectors do with regions: suppression, values inside of them, the classes that are there.

How many regions there are depends on the image and on the weights. Our own detectors are counted without data, with as
many as there can be: see ``foveate.dense.detection.without_data``. Others run on an image of zeros.
"""

from __future__ import annotations

import math

from torch import Tensor

from foveate.accounting.counting.products import Arguments, Formula, Keywords, Output

__all__ = ["REGIONS"]


def _suppression(args: Arguments, _kwargs: Keywords, _out: object) -> int:
    """Non-maximum suppression as if it kept all: areas, a sort, and for each pair its intersection over union (13)."""
    count = len(args[0])
    return 3 * count + count * math.ceil(math.log2(max(2, count))) + 13 * count * (count - 1) // 2


def _aligned(args: Arguments, _kwargs: Keywords, out: Output) -> int:
    """RoI align: the mean of bilinear values, in each direction as many as the sampling ratio says.

    Where it says 0, a region has as many as fit into its part of the map, which only the region's place tells.
    """
    values: Tensor = out if isinstance(out, Tensor) else out[0]
    ratio: int = args[5]
    if ratio > 0:
        return values.numel() * 9 * ratio**2
    scale, height, width = args[2:5]
    sides: Tensor = (args[1][:, 3:5] - args[1][:, 1:3]).clamp(min=0) * scale
    samples = (sides / sides.new_tensor([width, height])).ceil().clamp(min=1).prod(1).sum()
    return int(samples) * values[0].numel() * 9 if len(values) else 0


def _distinct(args: Arguments, _kwargs: Keywords, _out: object) -> int:
    """A sort of all values."""
    count = args[0].numel()
    return int(count * math.ceil(math.log2(max(2, count))))


REGIONS: dict[str, Formula] = {
    **dict.fromkeys(("torchvision::nms", "foveate::regions_kept"), _suppression),
    **dict.fromkeys(("torchvision::roi_align", "torchvision::ps_roi_align"), _aligned),
    "aten::_unique2": _distinct,
}
