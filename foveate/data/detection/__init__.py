"""Images with boxes: where each object is, and of which class."""

from __future__ import annotations

from foveate.data.detection.check import DetectionReport, check_detection
from foveate.data.detection.opening import find_detection, open_detection
from foveate.data.detection.split import DetectionData, DetectionSplit

__all__ = [
    "DetectionData",
    "DetectionReport",
    "DetectionSplit",
    "check_detection",
    "find_detection",
    "open_detection",
]
