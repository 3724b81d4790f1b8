"""Faster R-CNN and Mask R-CNN: a feature pyramid, region proposals, and a head on each region.

Ren, He, Girshick, Sun: Faster R-CNN, NeurIPS 2015, https://arxiv.org/abs/1506.01497; Lin et al., Feature Pyramid
Networks, CVPR 2017, https://arxiv.org/abs/1612.03144; He, Gkioxari, Dollár, Girshick: Mask R-CNN, ICCV 2017,
https://arxiv.org/abs/1703.06870. The parts, their thresholds and their losses are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from foveate.dense.detection.batch import PaddedImages
from foveate.dense.detection.without_data import align, suppress
from foveate.dense.upernet import STRIDES, rescaled
from foveate.errors import FoveateError

__all__ = ["FasterRCNNDecoder", "MaskRCNNDecoder"]

_LEVELS = 4
_RATIOS = (0.5, 1.0, 2.0)
_BEFORE_NMS, _IN_TRAINING = 1000, 2000  # proposals of each feature map


def _pool(size: int, strides: Sequence[int]) -> nn.Module:
    """RoI align on maps of known strides.

    torchvision's guesses them at its first call, from an image before it was filled up, and keeps them: wrong ones
    where a small first image was filled up by half.
    """
    pool: Any = MultiScaleRoIAlign(list(map(str, range(_LEVELS))), size, 2)
    levels = [int(math.log2(stride)) for stride in strides]
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(levels[0], levels[-1])
    made: nn.Module = pool
    return made


class FasterRCNNDecoder(nn.Module):
    """Faster R-CNN on four feature maps of a trunk.

    Args:
        channels: C of each of the four feature maps, finest first.
        strides: of each; where all are one of 4, 8, 16 and 32, the maps are rescaled to strides 4, 8, 16 and 32.
        classes: K, the background not counted.
        width: channels of the feature pyramid.
        hidden: width of the two layers on each region.
        anchor: side of the smallest anchors in pixels; those of each further map are twice as large. 32 is for images
            of 800 pixels: small images need smaller ones.
        proposals: most regions of an image that the head looks at, when it does not train.
        regions: of an image, which a training step draws for the head; at most a quarter of them are objects.
        detections: most objects of an image.
        threshold: an object with a lower score is none.

    Raises:
        FoveateError: all strides are one that cannot be rescaled, or a number is out of range.
    """

    levels = _LEVELS
    finest: int | None = None
    divisor = 32
    with_masks = False

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: int = 256,
        hidden: int = 1024,
        anchor: int = 32,
        proposals: int = 1000,
        regions: int = 512,
        detections: int = 100,
        threshold: float = 0.05,
    ) -> None:
        super().__init__()
        numbers = {
            "width": width,
            "hidden": hidden,
            "anchor": anchor,
            "proposals": proposals,
            "detections": detections,
            "regions": regions,
        }
        for name, value in numbers.items():
            if type(value) is not int or value < 1:
                raise FoveateError(f"{name}={value!r} must be a whole number, at least 1")
        if not 0 <= threshold < 1:
            raise FoveateError(f"threshold={threshold!r} must be at least 0 and below 1")
        self.strides = tuple(STRIDES if len(set(strides)) == 1 else strides)
        self.regions = regions
        self.rescale = rescaled("a feature pyramid", channels, strides)
        self.fpn = FeaturePyramidNetwork(list(channels), width, LastLevelMaxPool())
        sizes = tuple((anchor * 2**level,) for level in range(_LEVELS + 1))
        anchors = AnchorGenerator(sizes, (_RATIOS,) * len(sizes))
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(width, len(_RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": _IN_TRAINING, "testing": _BEFORE_NMS},
            post_nms_top_n={"training": _IN_TRAINING, "testing": proposals},
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            _pool(7, self.strides),
            TwoMLPHead(width * 7 * 7, hidden),
            FastRCNNPredictor(hidden, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=regions,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=threshold,
            nms_thresh=0.5,
            detections_per_img=detections,
            **self._mask_parts(width, classes, self.strides),
        )

    def _mask_parts(self, width: int, classes: int, strides: Sequence[int]) -> dict[str, nn.Module]:
        return {}

    def _pyramid(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        scaled = [rescale(x) for rescale, x in zip(self.rescale, maps, strict=True)]
        pyramid: dict[str, Tensor] = self.fpn({str(level): x for level, x in enumerate(scaled)})
        return pyramid

    def forward(
        self,
        images: PaddedImages,
        maps: Sequence[Tensor],
        targets: list[dict[str, Tensor]] | None,
        *,
        whole_masks: bool = True,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image, and in training mode the losses instead; classes from 1 on, 0 is background."""
        pyramid = self._pyramid(maps)
        if images.tensors.is_meta:
            return self._without_data(images, pyramid)
        proposals, losses = self.rpn(images, pyramid, targets)
        found, more = self.roi_heads(pyramid, proposals, images.image_sizes, targets)
        if not self.training and whole_masks:
            for one, size in zip(found, images.image_sizes, strict=True):
                if "masks" in one:
                    one["masks"] = paste_masks_in_image(one["masks"], one["boxes"], size)
        return found, {**losses, **more}

    def _without_data(
        self, images: PaddedImages, pyramid: dict[str, Tensor]
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """The same on shapes alone: as many regions as there can be, or as a training step takes."""
        objectness, deltas = self.rpn.head(list(pyramid.values()))
        anchors = self.rpn.anchor_generator(images, list(pyramid.values()))
        flat = [
            torch.cat([x.flatten(1).view(len(x), -1, side) for x in of], 1)
            for of, side in ((objectness, 1), (deltas, 4))
        ]
        boxes = self.rpn.box_coder.decode(flat[1].detach().flatten(0, 1), anchors).view(len(anchors), -1, 4)
        top = self.rpn._get_top_n_idx(flat[0].squeeze(2), [x[0].numel() for x in objectness])
        most, regions = self.rpn.post_nms_top_n(), []
        for image, size in enumerate(images.image_sizes):
            inside = clip_boxes_to_image(boxes[image][top[image]], size)
            kept = suppress(inside, flat[0][image, top[image], 0].sigmoid(), self.rpn.nms_thresh)[:most]
            regions.append(inside[kept][: self.regions] if self.training else inside[kept])
        count = sum(map(len, regions))
        levels = list(pyramid.values())[:_LEVELS]
        heads = self.roi_heads
        values = heads.box_head(align(levels, self.strides, count, 7))
        logits, places = heads.box_predictor(values)
        if self.training:
            given = {"objectness": flat[0], "anchors": flat[1], "classes": logits, "boxes": places}
            if self.with_masks:
                given["masks"] = self._masks(levels, count)
            return [], given
        scores = logits.softmax(-1)
        decoded = heads.box_coder.decode(places, regions)[:, 1]
        found, at = [], 0
        for size, of_image in zip(images.image_sizes, regions, strict=True):
            own = clip_boxes_to_image(decoded[at : at + len(of_image)], size)
            best = suppress(own, scores[at : at + len(of_image), 1], heads.nms_thresh)[: heads.detections_per_img]
            at += len(of_image)
            one = {"boxes": own[best], "labels": best, "scores": scores[best, 1]}
            if self.with_masks:
                one["masks"] = self._masks(levels, len(best)).new_zeros(len(best), 1, *size)
            found.append(one)
        return found, {}

    def _masks(self, levels: Sequence[Tensor], regions: int) -> Tensor:
        heads = self.roi_heads
        masks: Tensor = heads.mask_predictor(heads.mask_head(align(levels, self.strides, regions, 14)))
        return masks.sigmoid()


class MaskRCNNDecoder(FasterRCNNDecoder):
    """Mask R-CNN on four feature maps of a trunk: Faster R-CNN, and a mask of each object.

    Args:
        channels: as in Faster R-CNN.
        strides: as there.
        classes: as there.
        width: as there.
        hidden: as there.
        anchor: as there.
        proposals: as there.
        regions: as there.
        detections: as there.
        threshold: as there.
    """

    with_masks = True

    def _mask_parts(self, width: int, classes: int, strides: Sequence[int]) -> dict[str, nn.Module]:
        parts: dict[str, Any] = {  # nn.Module, which torchvision does not annotate
            "mask_roi_pool": _pool(14, strides),
            "mask_head": MaskRCNNHeads(width, (width,) * 4, 1),
            "mask_predictor": MaskRCNNPredictor(width, width, classes + 1),
        }
        return parts
