"""Segmentation and detection on top of the same backbones: a trunk, a head, scores for every pixel, or objects."""

from __future__ import annotations

from foveate.dense.create import create_segmenter
from foveate.dense.danet import DANetHead
from foveate.dense.detection import DETECTORS, Detector, create_detector
from foveate.dense.segmenter import HEADS, Segmenter
from foveate.dense.upernet import FCNHead, UPerHead

__all__ = [
    "DETECTORS",
    "HEADS",
    "DANetHead",
    "Detector",
    "FCNHead",
    "Segmenter",
    "UPerHead",
    "create_detector",
    "create_segmenter",
]
