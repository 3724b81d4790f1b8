"""A detection network by name, which a saved model can be rebuilt from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from foveate.dense.create import created
from foveate.dense.detection.detector import Detector
from foveate.spec import Spec

__all__ = ["create_detector"]


def create_detector(
    trunk: str | nn.Module,
    head: str | Spec = "faster_rcnn",
    *,
    classes: int | Sequence[str],
    pretrained: bool = False,
    in_chans: int = 3,
    taps: Sequence[int] | None = None,
    **options: object,
) -> Detector:
    """Build a detection network that ``fit`` trains, ``save`` keeps and ``load`` builds anew.

    Args:
        trunk: a timm model by name, such as ``"resnet50"``; what lies behind the last feature map that the head reads
            is left out. Or a timm network, which stays whole and as it is; ``load`` then needs one, too.
        head: ``faster_rcnn``, ``mask_rcnn`` or ``ssdlite`` (compact), with options: ``"faster_rcnn(anchor=16)"``.
        classes: how many, or their names; the background is none of them.
        pretrained: the trunk starts with its ImageNet weights.
        in_chans: channels of the images.
        taps: the feature maps that the head reads, as in ``Detector``.
        options: of timm, such as ``output_stride=16``.

    Returns:
        The network: (B, channels, H, W) -> a list of dictionaries with boxes, labels and scores; in training mode, with
        targets, the losses.

    Raises:
        FoveateError: a network, a head, an option or a feature map does not exist.
    """
    return created(Detector, "detector", trunk, head, classes, pretrained, in_chans, taps, options)
