"""A whole segmentation network: a trunk, a head on its feature maps, scores at the size of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from foveate.dense.danet import DANetDecoder
from foveate.dense.decoders import build_decoder, check_parts
from foveate.dense.lraspp import LRASPPDecoder
from foveate.dense.taps import find_taps
from foveate.dense.upernet import UperNetDecoder
from foveate.spec import Spec

__all__ = ["HEADS", "Segmenter"]

HEADS: dict[str, type[DANetDecoder] | type[LRASPPDecoder] | type[UperNetDecoder]] = {
    "danet": DANetDecoder,
    "lraspp": LRASPPDecoder,
    "upernet": UperNetDecoder,
}


class Segmenter(nn.Module):
    """Scores for every pixel.

    Args:
        backbone: a timm network with feature maps of strides 4, 8, 16, 32, dilated (``output_stride=8``) or not, or a
            column of equal blocks, such as ``patchconvnet_s60``; made with ``features_only=True`` or whole. It may
            carry a plan of attention already. Of a whole one the classifier stays, unused.
        head: ``danet``, ``lraspp`` or ``upernet``, with options: ``"danet(form='farthest')"``.
        classes: K.
        taps: the feature maps that the head reads, as indices in the backbone's own list; ``upernet`` reads four,
            ``lraspp`` two, ``danet`` one. Without them the last ones, and for ``lraspp`` the last and one of stride 8;
            of a column, those after a third, a half, two thirds and all of its blocks.

    Shape:
        x: (B, channels, H, W), any H and W that the backbone takes -> by name (B, K, H, W). ``out`` is the prediction.
        In training mode there are the auxiliary outputs too: ``aux`` of upernet; ``position`` and ``channel`` of danet.

    Attributes:
        num_classes: K.
        loss_weights: how much the loss of each output counts in training, by name.

    Raises:
        FoveateError: the head, its option, or a feature map does not exist, or the backbone lists none.
    """

    def __init__(
        self, backbone: nn.Module, head: str | Spec = "upernet", *, classes: int, taps: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        spec = check_parts("segmentation segmenter", backbone, head, classes, HEADS)
        decoder = HEADS[spec.name]
        self.taps = find_taps(backbone, decoder.levels, taps, finest=decoder.finest)
        self.num_classes = classes
        self.backbone = backbone
        self.decoder = build_decoder(spec, HEADS, self.taps, classes)
        self.loss_weights: Mapping[str, float] = self.decoder.loss_weights

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Scores by name."""
        scores = self.decoder(self.taps.read(self.backbone, x))
        return {
            name: F.interpolate(score, size=x.shape[2:], mode="bilinear", align_corners=False)
            for name, score in scores.items()
        }
