"""A2-Net's double attention: gather the image into a few features, then hand them out to the positions.

Chen, Kalantidis, Li, Yan, Feng: A^2-Nets: Double Attention Networks, NeurIPS 2018, https://arxiv.org/abs/1810.11579

    A = phi(x)                          c_m x N       what there is          (1x1 convolutions, with biases)
    B = softmax over N of theta(x)      c_n x N       c_n maps that gather
    V = softmax over c_n of rho(x)      c_n x N       what each position asks for
    Z = (A B^T) V                       out = x + W Z

Both softmaxes stay inside one image: a much copied version takes one over the batch. (A B^T) comes first, so nothing
of size N x N is ever built.

On a CPU ``forward`` infers by fewer products where these are the faster way: phi, theta and rho in one, and the output
in one, (W (A B^T) + b 1^T) V + x, since each column of V sums to 1. They take x as it lies, in either memory format.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.attention._gates import use_fused_path
from foveate.errors import FoveateError
from foveate.kernels import few_positions
from foveate.kernels.dispatch import Built, no_active_modes

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
        if not torch._jit_internal.is_scripting():
            by_products = use_fused_path(self, x, _BUILT) and self._are_faster(x)
            if by_products:
                return self._infer(x)
            if few_positions.takes_rows(self, x, _BUILT) and _are_few(x):
                return self._by_rows(x)
        features = self.phi(x).flatten(2)
        gathered = features @ self.attend(x).flatten(2).transpose(1, 2)
        handed_out = gathered @ self.rho(x).softmax(dim=1).flatten(2)
        change: Tensor = self.out(torch.unflatten(handed_out, 2, x.shape[2:]))
        return x + change

    def _are_faster(self, x: Tensor) -> bool:
        """Whether ``_infer`` computes what ``forward`` defines, and in less time: benchmarks/mechanisms.py."""
        if x.dtype is not torch.float32 or not x.is_cpu or not no_active_modes():
            return False
        if torch.is_autocast_enabled("cpu"):  # its products would give another type than the definition's sum
            return False
        batch, channels, height, width = x.shape
        last, positions = not x.is_contiguous(), height * width
        if last and not x.is_contiguous(memory_format=torch.channels_last):
            return False
        if _are_few(x) or (last and batch > 1 and positions < 8 * channels):
            return False
        convolutions = (self.phi, self.theta, self.rho, self.out)
        return all(few_positions.is_plain(conv) and conv.bias is not None for conv in convolutions)

    def _by_rows(self, x: Tensor) -> Tensor:
        rows = few_positions.rows_of(x)
        features, scores, asked = (few_positions.project(conv, rows) for conv in (self.phi, self.theta, self.rho))
        gathered = scores.softmax(1).transpose(1, 2) @ features
        handed_out = asked.softmax(2) @ gathered
        return x + few_positions.as_map(few_positions.project(self.out, handed_out), x)

    def _infer(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        inner = (self.phi, self.theta, self.rho)
        weight = torch.cat([conv.weight for conv in inner]).flatten(1).expand(batch, -1, -1)
        bias = torch.cat([conv.bias for conv in inner if conv.bias is not None])[None, :, None]
        last = not x.is_contiguous()
        planes = x.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2) if last else x.flatten(2)
        features, scores, asked = torch.split(torch.baddbmm(bias, weight, planes), [self.c_m, self.c_n, self.c_n], 1)
        gathered = features @ scores.softmax(2).transpose(1, 2)
        own = self.out.weight.flatten(1).expand(batch, -1, -1)
        offered = own @ gathered if self.out.bias is None else torch.baddbmm(self.out.bias[:, None], own, gathered)
        asked = asked.softmax(1)
        if last:
            rows = torch.baddbmm(planes.transpose(1, 2), asked.transpose(1, 2), offered.transpose(1, 2))
            return torch.unflatten(rows, 1, (height, width)).permute(0, 3, 1, 2)
        return torch.unflatten(torch.baddbmm(planes, offered, asked), 2, (height, width))

    def paper_cost(self, channels: int, height: int, width: int) -> tuple[int, int]:
        """Parameters and MACs as the ULSAM paper's table counts them: 2mt and 2mthw, two of the four convolutions."""
        return 2 * channels * self.c_m, 2 * channels * self.c_m * height * width


def _are_few(x: Tensor) -> bool:
    """Whether an image's positions are so few that its products by rows take less time."""
    return x.shape[2] * x.shape[3] < x.shape[1] // 4


_BUILT = Built(dict.fromkeys(("phi", "theta", "rho", "out"), nn.Conv2d), {"attend": DoubleAttention.attend})
