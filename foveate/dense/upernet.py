"""UperNet: pyramid pooling on the coarsest feature map, a feature pyramid over all, one classifier of their union.

Xiao, Liu, Zhou, Jiang, Sun: Unified Perceptual Parsing for Scene Understanding, ECCV 2018,
https://arxiv.org/abs/1807.10221; the layout is that of mmsegmentation's UPerHead and FCNHead, as the recipe of
facebookresearch/xcit (https://arxiv.org/abs/2106.09681) configures them.

    t_4 = conv3x3[x_4; up(conv1x1(pool_s(x_4))), s = 1, 2, 3, 6]        t_l = conv1x1(x_l) + up(t_{l+1}), l = 3, 2, 1
    scores = W conv3x3[conv3x3(t_1); up(conv3x3(t_2)); up(conv3x3(t_3)); up(t_4)]

Each conv has BN and ReLU and no bias; W is 1x1 with dropout in front; up is bilinear. A trunk whose feature maps all
have one size (a column of equal blocks) gets four sizes first, by transposed convolutions and max-pooling.
Unlike the recipe's code: max-pooling keeps what is left over where a side is odd, so that no map is too small.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError

__all__ = ["STRIDES", "FCNHead", "UPerHead", "UperNetDecoder", "rescaled"]

POOLS = (1, 2, 3, 6)
STRIDES = (4, 8, 16, 32)


def _conv(channels: int, width: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2, bias=False)
    # By the inputs: by the outputs (mmsegmentation's choice, for SGD) AdamW learns rare classes later, as measured in
    # benchmarks/segmentation_peers.py.
    nn.init.kaiming_uniform_(conv.weight, mode="fan_in", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(width), activate=nn.ReLU()))


def _classifier(width: int, classes: int) -> nn.Conv2d:
    conv = nn.Conv2d(width, classes, 1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
    return conv


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class UPerHead(nn.Module):
    """UperNet's head.

    Args:
        channels: C of each feature map, finest first.
        classes: K.
        width: channels inside; the recipe takes 512.
        dropout: the probability that a channel is dropped before the classifier.

    Shape:
        maps: [(B, C_l, h_l, w_l)], finest first -> (B, K, h_1, w_1).

    Raises:
        FoveateError: one image in training mode: the pool of 1 x 1 leaves batch normalisation a single number.

    A state dict of mmsegmentation's UPerHead (``psp_modules.0.1.conv.weight``, ...) loads as it is.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, width: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        *finer, coarsest = channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), _conv(coarsest, width, 1)) for side in POOLS
        )
        self.bottleneck = _conv(coarsest + len(POOLS) * width, width, 3)
        self.lateral_convs = nn.ModuleList(_conv(c, width, 1) for c in finer)
        self.fpn_convs = nn.ModuleList(_conv(width, width, 3) for _ in finer)
        self.fpn_bottleneck = _conv(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores at the size of the finest map."""
        *finer, coarsest = maps
        pooled = [_resize(pool(coarsest), coarsest) for pool in self._pools(coarsest.shape[0])]
        top = self.bottleneck(torch.cat([coarsest, *pooled], 1))
        merged = [top]
        for lateral, x in reversed(list(zip(self.lateral_convs, finer, strict=True))):
            side = lateral(x)
            merged.insert(0, side + _resize(merged[0], side))
        refined = [conv(x) for conv, x in zip(self.fpn_convs, merged[:-1], strict=True)] + [top]
        joined = torch.cat([refined[0], *(_resize(x, refined[0]) for x in refined[1:])], 1)
        scores: Tensor = self.conv_seg(self.dropout(self.fpn_bottleneck(joined)))
        return scores

    def _pools(self, images: int) -> nn.ModuleList:
        norm = self.psp_modules.get_submodule("0.1.bn")
        if norm.training and images == 1 and isinstance(norm, nn.BatchNorm2d):
            raise FoveateError(
                "upernet pools an image to 1 x 1, which batch normalisation cannot train on with one image: "
                "give two images or more, or put the head's normalisation into eval mode"
            )
        return self.psp_modules


class FCNHead(nn.Module):
    """One 3x3 convolution and a classifier: the auxiliary head, which helps in training and is not run after it.

    Args:
        channels: C of the feature map.
        classes: K.
        width: channels inside; the recipe takes 256.
        dropout: the probability that a channel is dropped before the classifier.

    Shape:
        x: (B, C, h, w) -> (B, K, h, w).

    A state dict of mmsegmentation's FCNHead (one convolution, no concatenation) loads as it is.
    """

    def __init__(self, channels: int, classes: int, *, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(_conv(channels, width, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores at the size of x."""
        scores: Tensor = self.conv_seg(self.dropout(self.convs(x)))
        return scores


def _rescale(channels: int, stride: int, wanted: int) -> nn.Module:
    """From one stride to another: transposed convolutions with BN and GELU between them, nothing, or max-pooling."""
    if wanted >= stride:
        factor = wanted // stride
        return nn.MaxPool2d(factor, ceil_mode=True) if factor > 1 else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(int(math.log2(stride // wanted))):
        if layers:
            layers += [nn.BatchNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
    return nn.Sequential(*layers)


def rescaled(head: str, channels: Sequence[int], strides: Sequence[int]) -> nn.ModuleList:
    """What brings four feature maps of one stride to strides 4, 8, 16 and 32; maps of several strides stay.

    Args:
        head: what reads the maps, for the message.
        channels: C of each map.
        strides: of each.

    Raises:
        FoveateError: all strides are one that cannot be rescaled.
    """
    wanted = STRIDES if len(set(strides)) == 1 else strides
    if wanted is STRIDES and strides[0] not in STRIDES:
        raise FoveateError(
            f"{head} cannot rescale maps of stride {strides[0]} to strides 4, 8, 16 and 32: "
            "take a trunk of one of these strides"
        )
    return nn.ModuleList(map(_rescale, channels, strides, wanted))


class UperNetDecoder(nn.Module):
    """UPerHead on four feature maps of a trunk, and in training the auxiliary head on the third.

    Args:
        channels: C of each of the four feature maps, finest first.
        strides: of each; where all are one of 4, 8, 16 and 32, the maps are rescaled to strides 4, 8, 16 and 32.
        classes: K.
        width: of ``UPerHead``.
        aux_width: of ``FCNHead``; 0: there is no auxiliary head.
        dropout: of both.
        map_norm: layer norm of each map's channels first, as in what mmsegmentation reads of ConvNeXt and Swin.

    Shape:
        maps: four of (B, C_l, h_l, w_l) -> by name (B, K, h, w): ``out``, and in training mode ``aux``.

    Raises:
        FoveateError: all strides are one that cannot be rescaled.
    """

    levels = 4
    finest: int | None = None
    loss_weights: Mapping[str, float] = {"out": 1.0, "aux": 0.4}

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        *,
        width: int = 512,
        aux_width: int = 256,
        dropout: float = 0.1,
        map_norm: bool = False,
    ) -> None:
        super().__init__()
        self.pyramid = rescaled("upernet", channels, strides)
        self.map_norms = nn.ModuleList(LayerNorm2d(c) for c in channels) if map_norm else None
        self.decode_head = UPerHead(channels, classes, width=width, dropout=dropout)
        self.auxiliary_head = FCNHead(channels[2], classes, width=aux_width, dropout=dropout) if aux_width else None
        self.loss_weights = {name: w for name, w in self.loss_weights.items() if name == "out" or aux_width}

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Scores by name."""
        maps = [rescale(x) for rescale, x in zip(self.pyramid, maps, strict=True)]
        if self.map_norms is not None:
            maps = [norm(x) for norm, x in zip(self.map_norms, maps, strict=True)]
        scores = {"out": self.decode_head(maps)}
        if self.training and self.auxiliary_head is not None:
            scores["aux"] = self.auxiliary_head(maps[2])
        return scores
