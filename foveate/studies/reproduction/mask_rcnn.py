"""Mask R-CNN as far as its cost goes: the parts, run once on made-up regions.

He, Gkioxari, Dollár, Girshick: Mask R-CNN, ICCV 2017, https://arxiv.org/abs/1703.06870, laid out as mmdetection does
for COCO: a feature pyramid of 256 channels, region proposals on five maps, two dense layers of 1024 and four
convolutions of 256 behind the regions, 80 classes. Nothing is detected: how many regions there are depends on the
image, so mmdetection's counter takes 1000 for the boxes and 100 for the masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork

from foveate.dense.taps import find_taps
from foveate.dense.upernet import UperNetDecoder

__all__ = ["MaskRCNNParts"]

CLASSES, WIDTH, ANCHORS = 80, 256, 3
BOXES, MASKS = 1000, 100


class MaskRCNNParts(nn.Module):
    """The modules of Mask R-CNN on a trunk.

    Args:
        backbone: as of ``foveate.dense.Segmenter``. Maps of one size are rescaled as there.
        taps: the four feature maps, as indices in the backbone's list.

    Shape:
        x: (1, channels, H, W) -> (100, 80, 28, 28): the masks of made-up regions.
    """

    def __init__(self, backbone: nn.Module, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.taps = find_taps(backbone, 4, taps)
        channels = self.taps.channels
        self.rescale = UperNetDecoder(channels, self.taps.strides, 1).pyramid
        self.fpn = FeaturePyramidNetwork(list(channels), WIDTH)
        self.rpn = RPNHead(WIDTH, ANCHORS)
        self.box = TwoMLPHead(WIDTH * 7 * 7, 1024)
        self.box_class = nn.Linear(1024, CLASSES + 1)
        self.box_place = nn.Linear(1024, 4 * CLASSES)
        self.mask = MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1)
        self.mask_class = MaskRCNNPredictor(WIDTH, WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Run every part once."""
        maps = [rescale(m) for rescale, m in zip(self.rescale, self.taps.read(self.backbone, x), strict=True)]
        pyramid = list(self.fpn({str(level): m for level, m in enumerate(maps)}).values())
        self.rpn([*pyramid, pyramid[-1][:, :, ::2, ::2]])
        regions = self.box(torch.zeros(BOXES, WIDTH, 7, 7, device=x.device))
        self.box_class(regions)
        self.box_place(regions)
        masks: Tensor = self.mask_class(self.mask(torch.zeros(MASKS, WIDTH, 14, 14, device=x.device)))
        return masks
