"""ULSAM: a spatial softmax map for each group of channels, from 5m + 3g parameters.

Saini, Jha, Das, Mittal, Mohan: ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural
Networks, WACV 2020, https://arxiv.org/abs/2006.15102

    A_n   = softmax_hw(relu(BN(PW(maxpool3x3(relu(BN(DW(F_n))))))))      n = 1 .. g, G = m/g channels each
    out_n = F_n + A_n * F_n

As in the authors' code: biases in DW and PW, and a ReLU before the softmax, which the paper's formula leaves out.
Unlike the authors' code: the g subspaces are computed together (a grouped convolution is g convolutions), so the
number of operations does not depend on g; and the momentum of the batch norms is 0.1. Their 0.9 reads like
TensorFlow's convention: in PyTorch it makes the running statistics 90% the last batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.kernels.ulsam import reweight, spatial_softmax

__all__ = ["ULSAM"]


class ULSAM(nn.Module):
    """Ultra-lightweight subspace attention.

    Args:
        channels: m, the channels of x.
        groups: g, the number of subspaces; it divides ``channels``. The paper tries 1, 2, 4, 8, 16.
        momentum: of both batch norms, in PyTorch's convention. The authors' code has 0.9.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: (B, g, h, w), each map sums to 1 over h, w.

    Raises:
        FoveateError: ``groups`` does not divide ``channels``, or is less than 1.

    A state dict of the authors' module (``subspaces.0.conv_dws.weight``, ...) loads as it is.
    """

    map_axes = "b g h w"

    def __init__(self, channels: int, *, groups: int = 4, momentum: float = 0.1) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            fitting = ", ".join(str(g) for g in (1, 2, 4, 8, 16) if channels % g == 0)
            raise FoveateError(f"ulsam(groups={groups}) does not fit {channels} channels: take groups from {fitting}")
        self.channels, self.groups, self.momentum = channels, groups, momentum
        self.conv_dws = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn_dws = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv_point = nn.Conv2d(channels, groups, 1, groups=groups)
        self.bn_point = nn.BatchNorm2d(groups, momentum=momentum)
        self.register_load_state_dict_pre_hook(_join_subspaces)

    def attend(self, x: Tensor) -> Tensor:
        """The maps A, (B, g, h, w)."""
        hidden = F.relu(self.bn_dws(self.conv_dws(x)))
        hidden = F.max_pool2d(hidden, kernel_size=3, stride=1, padding=1)
        return spatial_softmax(F.relu(self.bn_point(self.conv_point(hidden))))

    def forward(self, x: Tensor) -> Tensor:
        """x + A * x, subspace by subspace."""
        return reweight(x, self.attend(x))

    def extra_repr(self) -> str:
        """The options, as they are written in a plan."""
        return f"{self.channels}, groups={self.groups}"

    @staticmethod
    def paper_cost(channels: int, height: int, width: int) -> tuple[int, int]:
        """Parameters and MACs as the paper counts them: 2m and 2mhw (no biases, no batch norms)."""
        return 2 * channels, 2 * channels * height * width


def _join_subspaces(module: ULSAM, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Rewrite the authors' keys, one set for each subspace, into ours: concatenated along the first axis."""
    start = f"{prefix}subspaces."
    if not any(key.startswith(start) for key in state):
        return
    groups = module.groups
    for name in _names(module):
        parts = [state.pop(f"{start}{n}.{name}", None) for n in range(groups)]
        if any(part is None for part in parts):
            continue  # load_state_dict names what is missing
        state[prefix + name] = parts[0] if parts[0].ndim == 0 else torch.cat(parts)


def _names(module: nn.Module) -> Iterable[str]:
    return (name for name, _ in [*module.named_parameters(), *module.named_buffers()])
