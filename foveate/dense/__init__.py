"""Segmentation on top of the same backbones: a trunk, a head, scores for every pixel."""

from __future__ import annotations

from foveate.dense.create import create_segmenter
from foveate.dense.danet import DANetHead
from foveate.dense.segmenter import HEADS, Segmenter
from foveate.dense.upernet import FCNHead, UPerHead

__all__ = ["HEADS", "DANetHead", "FCNHead", "Segmenter", "UPerHead", "create_segmenter"]
