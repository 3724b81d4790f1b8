"""A whole detection network: a trunk, a head on its feature maps, objects of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from foveate.dense.decoders import build_decoder, check_parts
from foveate.dense.detection.batch import PaddedImages
from foveate.dense.detection.rcnn import FasterRCNNDecoder, MaskRCNNDecoder
from foveate.dense.detection.ssdlite import SSDLiteDecoder
from foveate.dense.taps import find_taps
from foveate.errors import FoveateError
from foveate.spec import Spec

__all__ = ["DETECTORS", "Detector"]

DETECTORS: dict[str, type[FasterRCNNDecoder] | type[SSDLiteDecoder]] = {
    "faster_rcnn": FasterRCNNDecoder,
    "mask_rcnn": MaskRCNNDecoder,
    "ssdlite": SSDLiteDecoder,
}


class Detector(nn.Module):
    """Objects of images: boxes with classes and scores.

    Args:
        backbone: a timm network with feature maps of strides 4, 8, 16, 32, or a column of equal blocks, such as
            ``patchconvnet_s60``; made with ``features_only=True`` or whole. It may carry a plan of attention already.
        head: ``faster_rcnn``, ``mask_rcnn`` or ``ssdlite``, with options: ``"faster_rcnn(anchor=16)"``.
        classes: K, the background not counted.
        taps: the feature maps that the head reads, as indices in the backbone's own list; ``ssdlite`` reads two, the
            others four. Without them the last ones; of a column, those after a third, a half, two thirds and all of its
            blocks.

    Shape:
        images: (B, channels, H, W), or a list of (channels, H_i, W_i), normalised -> a list of B dictionaries:
        ``boxes`` (n, 4), left, top, right and bottom in pixels of the input; ``labels`` (n,) int64, 0 to K - 1;
        ``scores`` (n,), the highest first; of mask_rcnn ``masks`` (n, 1, H, W), 0 to 1.
        In training mode, with ``targets``, a list of dictionaries with boxes, labels and for mask_rcnn masks (n, H, W)
        -> the losses by name, () each.

    Attributes:
        num_classes: K.

    Raises:
        FoveateError: the head, its option, or a feature map does not exist, or the backbone lists none.
    """

    def __init__(
        self, backbone: nn.Module, head: str | Spec = "faster_rcnn", *, classes: int, taps: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        spec = check_parts("detection detector", backbone, head, classes, DETECTORS)
        decoder = DETECTORS[spec.name]
        self.taps = find_taps(backbone, decoder.levels, taps, finest=decoder.finest)
        self.num_classes = classes
        self.backbone = backbone
        self.decoder = build_decoder(spec, DETECTORS, self.taps, classes)

    @property
    def with_masks(self) -> bool:
        """Whether it finds the pixels of each object, too, and learns from masks."""
        return bool(self.decoder.with_masks)

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        *,
        whole_masks: bool = True,
    ) -> list[dict[str, Tensor]] | dict[str, Tensor]:
        """Objects of each image, or in training mode the losses.

        Args:
            images: see above.
            targets: see above.
            whole_masks: give masks of the size of the image; otherwise (n, 1, 28, 28), each of its box alone.

        Raises:
            FoveateError: there are no targets in training mode, or the images have 16 bits outside of autocast.
        """
        batch = PaddedImages.of(images, int(self.decoder.divisor))
        if self.training and targets is None and not batch.tensors.is_meta:
            raise FoveateError("a detector in training mode needs targets: give them, or call .eval() first")
        _check_dtype(batch.tensors)
        own = [{**target, "labels": target["labels"] + 1} for target in targets] if targets is not None else None
        maps = self.taps.read(self.backbone, batch.tensors)
        options = {"whole_masks": whole_masks} if self.with_masks else {}
        found, losses = self.decoder(batch, maps, own if self.training else None, **options)
        if self.training:
            given: dict[str, Tensor] = losses
            return given
        return [{**one, "labels": one["labels"] - 1} for one in found]


def _check_dtype(images: Tensor) -> None:
    """torchvision's non-maximum suppression takes of 16 bits only float16 on CUDA; inside autocast it gets float32."""
    half = images.dtype is torch.bfloat16 or (images.dtype is torch.float16 and not images.is_cuda)
    if half and not images.is_meta and not torch.is_autocast_enabled(images.device.type):
        raise FoveateError(
            f"a detector in {str(images.dtype).removeprefix('torch.')} cannot choose among its boxes: give "
            "model.float(), in torch.autocast where it shall compute in 16 bits"
        )
