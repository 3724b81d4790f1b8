"""LR-ASPP: a head for compact networks, which reads a fine feature map and the last one.

Howard et al., Searching for MobileNetV3, ICCV 2019, https://arxiv.org/abs/1905.02244, section 6.4.
The module is torchvision's.

    scores = W_low x_low + W_high up(conv1x1(x_high) * sigmoid(V mean(x_high)))

conv1x1 has BN and ReLU, V no bias; W_low and W_high are 1x1 with bias; up is bilinear, to the size of x_low.
Unlike the paper: the mean is over all positions, not over windows of 49 x 49; so it is in torchvision, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["LRASPPDecoder"]


class LRASPPDecoder(nn.Module):
    """LR-ASPP on two feature maps of a trunk: one of stride 8 and the last.

    Args:
        channels: C of both, the finer first.
        strides: of both; nothing depends on them.
        classes: K.
        width: channels inside; the paper takes 128.

    Shape:
        maps: two of (B, C_l, h_l, w_l) -> by name (B, K, h_1, w_1): ``out``.

    Raises:
        FoveateError: ``width`` is less than 1.
    """

    levels = 2
    finest: int | None = 8
    loss_weights: ClassVar[Mapping[str, float]] = {"out": 1.0}

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: int = 128,
    ) -> None:
        from torchvision.models.segmentation.lraspp import LRASPPHead

        super().__init__()
        if type(width) is not int or width < 1:
            raise FoveateError(f"lraspp: width={width!r} must be a whole number, at least 1")
        self.head = LRASPPHead(channels[0], channels[-1], classes, width)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Scores by name."""
        return {"out": self.head({"low": maps[0], "high": maps[-1]})}
