"""What PatchConvNet is made of: stems, the block, a classifier for a token per class."""

from __future__ import annotations

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.attention.se import SE

__all__ = ["NORMS", "PATCH", "STEMS", "Block", "ClassLinear", "PatchProjection", "build_stem"]

PATCH = 16  # pixels, of an image for one position of the map
NORMS = {"layer": LayerNorm2d, "batch": nn.BatchNorm2d}
STEMS = ("convolution", "linear")


class PatchProjection(nn.Conv2d):
    """A linear layer on each patch of 16 x 16 pixels; zeros fill up the patches at the right and lower border.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H/16), ceil(W/16)).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """Project the patches."""
        return super().forward(F.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH)))


def build_stem(kind: str, in_channels: int, channels: int) -> nn.Sequential:
    """Four convolutions with GELU between them, or one linear projection of patches.

    Args:
        kind: "convolution" or "linear".
        in_channels: channels of the images.
        channels: of the map, a multiple of 8.

    Returns:
        (B, in_channels, H, W) -> (B, channels, ceil(H/16), ceil(W/16)).
    """
    if kind == "linear":
        return nn.Sequential(PatchProjection(in_channels, channels))
    layers: list[nn.Module] = []
    for width in (channels // 8, channels // 4, channels // 2, channels):
        layers += [nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False), nn.GELU()]
        in_channels = width
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """x + gamma * conv1x1(se(gelu(dw3x3(gelu(conv1x1(norm(x))))))), all of one width.

    Args:
        channels: C.
        norm: "layer" (over the channels of each position) or "batch".
        drop_path: probability that an image skips the block while training.
        init_values: gamma at the start.

    Shape:
        (B, C, h, w) -> (B, C, h, w).
    """

    def __init__(self, channels: int, norm: str = "layer", drop_path: float = 0.0, init_values: float = 1e-6) -> None:
        super().__init__()
        self.norm = NORMS[norm](channels)
        self.pointwise1 = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.se = SE(channels, reduction=4)
        self.pointwise2 = nn.Conv2d(channels, channels, 1)
        self.scale = LayerScale2d(channels, init_values)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's change to x."""
        y = F.gelu(self.pointwise1(self.norm(x)))
        y = self.se(F.gelu(self.depthwise(y)))
        change: Tensor = self.drop_path(self.scale(self.pointwise2(y)))
        return x + change


class ClassLinear(nn.Linear):
    """Scores from features of each class's own: score k is <w_k, features k> + b_k.

    Shape:
        (B, K, C) -> (B, K).
    """

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        return torch.einsum("bkc,kc->bk", x, self.weight) + self.bias
