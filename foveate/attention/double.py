"""A2-Net's double attention: gather the image into a few features, then hand them out to the positions.

Chen, Kalantidis, Li, Yan, Feng: A^2-Nets: Double Attention Networks, NeurIPS 2018, https://arxiv.org/abs/1810.11579

    A = phi(x)                          c_m x N       what there is          (1x1 convolutions, with biases)
    B = softmax over N of theta(x)      c_n x N       c_n maps that gather
    V = softmax over c_n of rho(x)      c_n x N       what each position asks for
    Z = (A B^T) V                       out = x + W Z

Both softmaxes stay inside one image: a much copied version takes one over the batch. (A B^T) comes first, so nothing
of size N x N is ever built.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["DoubleAttention"]


class DoubleAttention(nn.Module):
    """Double attention.

    Args:
        channels: m, the channels of x.
        c_m: channels of the gathered features; without a value max(1, m // 8), the ULSAM paper's 64 at m = 512.
        c_n: number of gathered features, that is of maps; without a value max(1, m // 8).

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: the gathering maps B, (B, c_n, h, w), each sums to 1 over h, w.

    Raises:
        FoveateError: ``c_m`` or ``c_n`` is less than 1.
    """

    map_axes = "b n h w"

    def __init__(self, channels: int, *, c_m: int | None = None, c_n: int | None = None) -> None:
        super().__init__()
        self.c_m = max(1, channels // 8) if c_m is None else c_m
        self.c_n = max(1, channels // 8) if c_n is None else c_n
        if self.c_m < 1 or self.c_n < 1:
            raise FoveateError(f"double(c_m={c_m}, c_n={c_n}): both are at least 1; channels // 8 is the default")
        self.phi = nn.Conv2d(channels, self.c_m, 1)
        self.theta = nn.Conv2d(channels, self.c_n, 1)
        self.rho = nn.Conv2d(channels, self.c_n, 1)
        self.out = nn.Conv2d(self.c_m, channels, 1)

    def attend(self, x: Tensor) -> Tensor:
        """The gathering maps B, (B, c_n, h, w)."""
        scores: Tensor = self.theta(x).flatten(2)
        return torch.unflatten(scores.softmax(dim=2), 2, x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """The output, x + W Z."""
        features = self.phi(x).flatten(2)
        gathered = features @ self.attend(x).flatten(2).transpose(1, 2)
        handed_out = gathered @ self.rho(x).softmax(dim=1).flatten(2)
        change: Tensor = self.out(torch.unflatten(handed_out, 2, x.shape[2:]))
        return x + change

    def paper_cost(self, channels: int, height: int, width: int) -> tuple[int, int]:
        """Parameters and MACs as the ULSAM paper's table counts them: 2mt and 2mthw, two of the four convolutions."""
        return 2 * channels * self.c_m, 2 * channels * self.c_m * height * width
