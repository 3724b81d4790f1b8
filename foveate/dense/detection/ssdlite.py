"""SSDLite: boxes of six feature maps at once, by separable convolutions; for phones.

Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, https://arxiv.org/abs/1512.02325; Sandler et al.,
MobileNetV2, CVPR 2018, https://arxiv.org/abs/1801.04381, section 6.2. The head, the matching and the loss are
torchvision's.

The maps are the two last ones of the trunk and four of half the size each, by a 1x1 convolution to half the channels, a
3x3 depthwise one of stride 2 and a 1x1 one, each with BN and ReLU6. The default boxes grow with the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation, box_iou

from foveate.dense.detection.batch import PaddedImages
from foveate.dense.detection.without_data import suppress
from foveate.errors import FoveateError

__all__ = ["SSDLiteDecoder"]

_EXTRA = (512, 256, 256, 128)
_ASPECTS = (2, 3)
_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)


def _halved(channels: int, width: int) -> nn.Sequential:
    inner = width // 2
    layer = partial(Conv2dNormActivation, norm_layer=_NORM, activation_layer=nn.ReLU6)
    return nn.Sequential(
        layer(channels, inner, 1), layer(inner, inner, 3, stride=2, groups=inner), layer(inner, width, 1)
    )


class SSDLiteDecoder(nn.Module):
    """SSDLite on the two last feature maps of a trunk.

    Args:
        channels: C of both, the finer first.
        strides: of both; nothing depends on them.
        classes: K, the background not counted.
        width: of the four further maps, as a share of 512, 256, 256 and 128 channels.
        detections: most objects of an image.
        threshold: an object with a lower score is none.

    Raises:
        FoveateError: a number is out of range.
    """

    levels = 2
    finest: int | None = None
    divisor = 1
    with_masks = False

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: float = 1.0,
        detections: int = 300,
        threshold: float = 0.001,
    ) -> None:
        super().__init__()
        if type(detections) is not int or detections < 1:
            raise FoveateError(f"detections={detections!r} must be a whole number, at least 1")
        if not 0 < width <= 8 or not 0 <= threshold < 1:
            raise FoveateError(f"width={width!r} must be above 0, at most 8, and threshold={threshold!r} in [0, 1)")
        widths = [max(16, int(width * of)) for of in _EXTRA]
        every = [*channels, *widths]
        anchors = DefaultBoxGenerator([list(_ASPECTS) for _ in every], min_ratio=0.2, max_ratio=0.95)
        head = SSDLiteHead(every, anchors.num_anchors_per_location(), classes + 1, _NORM)
        options = {"score_thresh": threshold, "nms_thresh": 0.55, "detections_per_img": detections}
        extra = nn.ModuleList(_halved(*pair) for pair in zip([channels[-1], *widths[:-1]], widths, strict=True))
        self.ssd = SSD(extra, anchors, (320, 320), classes + 1, head=head, topk_candidates=300, **options)

    def forward(
        self, images: PaddedImages, maps: Sequence[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image, and in training mode the losses instead; classes from 1 on, 0 is background."""
        every = list(maps)
        for halve in self.ssd.backbone:
            every.append(halve(every[-1]))
        outputs = self.ssd.head(every)
        if images.tensors.is_meta:
            return ([], outputs) if self.training else (self._without_data(outputs), {})
        anchors = self.ssd.anchor_generator(images, every)
        if self.training and targets is not None:
            matched = [self._matched(own, target["boxes"]) for own, target in zip(anchors, targets, strict=True)]
            return [], self.ssd.compute_loss(targets, outputs, anchors, matched)
        return self.ssd.postprocess_detections(outputs, anchors, images.image_sizes), {}

    def _matched(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """(A,) which object each default box stands for, or -1."""
        if not len(boxes):
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        matched: Tensor = self.ssd.proposal_matcher(box_iou(boxes, anchors))
        return matched

    def _without_data(self, outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """On shapes alone: of each class the 300 best boxes are compared with each other."""
        scores, found = outputs["cls_logits"].softmax(-1), []
        for own, places in zip(scores, outputs["bbox_regression"], strict=True):
            boxes = self.ssd.box_coder.decode_single(places, places.new_empty(len(places), 4))
            best, index = own[:, 1:].topk(min(self.ssd.topk_candidates, len(boxes)), dim=0)
            of_class = [boxes[index[:, k]] for k in range(best.shape[1])]
            kept = [suppress(of, best[:, k], self.ssd.nms_thresh) for k, of in enumerate(of_class)]
            every = torch.cat(of_class)[: self.ssd.detections_per_img]
            found.append(
                {"boxes": every, "labels": torch.cat(kept)[: len(every)], "scores": best.flatten()[: len(every)]}
            )
        return found
