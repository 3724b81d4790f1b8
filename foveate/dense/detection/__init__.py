"""Detection on top of the same backbones: a trunk, a head, boxes with classes and scores."""

from __future__ import annotations

from foveate.dense.detection.create import create_detector
from foveate.dense.detection.detector import DETECTORS, Detector

__all__ = ["DETECTORS", "Detector", "create_detector"]
