"""GAP: global average pooling, the mean of each channel over all positions.

Lin, Chen, Yan: Network In Network, ICLR 2014, https://arxiv.org/abs/1312.4400

    out_c = 1/(hw) sum_ij x_cij

Every position counts the same. It is what most networks do anyway; as a pool of its own it is the one to compare with.
"""

from __future__ import annotations

from torch import Tensor, nn

from foveate.kernels.pooled import mean_over

__all__ = ["GlobalAveragePool"]


class GlobalAveragePool(nn.Module):
    """Global average pooling.

    Args:
        channels: C, the channels of x. The mean does not need to know them; all pools are built alike.

    Shape:
        x: (B, C, h, w) -> (B, C). The map: (B, h, w), 1/(hw) at each position.
    """

    map_axes = "b h w"

    def __init__(self, channels: int) -> None:
        super().__init__()

    def attend(self, x: Tensor) -> Tensor:
        """The weight of each position, 1/(hw): (B, h, w)."""
        batch, _, height, width = x.shape
        return x.new_full((batch, height, width), 1 / (height * width))

    def forward(self, x: Tensor) -> Tensor:
        """The means, (B, C)."""
        return mean_over(x, [2, 3])
