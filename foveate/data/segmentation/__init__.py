"""Images with a label map each: a class for every pixel."""

from __future__ import annotations

from foveate.data.segmentation.check import SegmentationReport, check_segmentation
from foveate.data.segmentation.opening import find_segmentation, open_segmentation
from foveate.data.segmentation.split import IGNORE, SegmentationData, SegmentationSplit

__all__ = [
    "IGNORE",
    "SegmentationData",
    "SegmentationReport",
    "SegmentationSplit",
    "check_segmentation",
    "find_segmentation",
    "open_segmentation",
]
