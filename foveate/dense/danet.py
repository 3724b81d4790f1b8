"""DANet's head: position and channel attention in parallel, each between convolutions, and their sum.

Fu, Liu, Tian, Li, Bao, Fang, Lu: Dual Attention Network for Scene Segmentation, CVPR 2019,
https://arxiv.org/abs/1809.02983

    p = conv(P(conv(x)))        c = conv(C(conv(x)))        scores = W (p + c), W_p p, W_c c

P and C are the mechanisms ``position`` and ``channel``; conv is 3x3 with BN and ReLU, from C to C/4 channels before
each attention and C/4 to C/4 after it; W, W_p, W_c are 1x1 with dropout in front.
As in the authors' code: three outputs, which are trained with equal weight; the first is the prediction.
Unlike the authors' code: channel attention's ``form`` is the paper's; upsampling, which is the ``Segmenter``'s, takes
pixels as areas (align_corners=False), not as points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from foveate.attention.channel import ChannelAttention
from foveate.attention.position import PositionAttention

__all__ = ["DANetDecoder", "DANetHead"]


def _conv(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))


class DANetHead(nn.Module):
    """DANet's head.

    Args:
        channels: C of the feature map; inside there are max(1, C // 4).
        classes: K.
        reduction: of position attention's q and k: max(1, C // 4 // reduction) channels. The authors' code: 8.
        form: of channel attention: ``nearest`` (the paper) or ``farthest`` (the authors' code).
        dropout: the probability that a channel is dropped before each classifier; the authors take 0.1.

    Shape:
        x: (B, C, h, w) -> three of (B, K, h, w): scores of the sum, of the position branch, of the channel branch.

    Raises:
        FoveateError: ``form`` is none of the two, or ``reduction`` is less than 1.

    A state dict of the authors' head (``conv5a.0.weight``, ...) loads as it is.
    """

    def __init__(
        self, channels: int, classes: int, *, reduction: int = 8, form: str = "nearest", dropout: float = 0.1
    ) -> None:
        super().__init__()
        width = max(1, channels // 4)
        self.conv5a = _conv(channels, width)
        self.sa = PositionAttention(width, reduction=reduction)
        self.conv51 = _conv(width, width)
        self.conv5c = _conv(channels, width)
        self.sc = ChannelAttention(width, form=form)
        self.conv52 = _conv(width, width)
        self.conv6 = _classifier(width, classes, dropout)
        self.conv7 = _classifier(width, classes, dropout)
        self.conv8 = _classifier(width, classes, dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the sum and of the two branches."""
        position = self.conv51(self.sa(self.conv5a(x)))
        channel = self.conv52(self.sc(self.conv5c(x)))
        return self.conv8(position + channel), self.conv6(position), self.conv7(channel)


class DANetDecoder(nn.Module):
    """DANet's head on the last feature map of a trunk.

    Args:
        channels: C of each feature map.
        strides: of each feature map; nothing depends on them.
        classes: K.
        reduction: as in ``DANetHead``.
        form: as in ``DANetHead``.
        dropout: as in ``DANetHead``.

    Shape:
        maps: [(B, C, h, w)] -> by name (B, K, h, w): ``out``, and in training mode ``position`` and ``channel``.
    """

    levels = 1
    finest: int | None = None
    loss_weights: ClassVar[Mapping[str, float]] = {"out": 1.0, "position": 1.0, "channel": 1.0}

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        reduction: int = 8,
        form: str = "nearest",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.head = DANetHead(channels[-1], classes, reduction=reduction, form=form, dropout=dropout)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Scores by name."""
        out, position, channel = self.head(maps[-1])
        return {"out": out, "position": position, "channel": channel} if self.training else {"out": out}
