"""Adaptive average pooling as a product of matrices, for converters that take a feature map's size for a constant.

Bin i of s covers positions floor(i h / s) to ceil((i + 1) h / s) - 1 of h, as in torch.nn.AdaptiveAvgPool2d. With the
rows of M_h being the bins' weights, each of the sum 1,

    pooled = M_h x M_w'
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["MatrixPool", "with_matrix_pools"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class MatrixPool(nn.Module):
    """The same as ``AdaptiveAvgPool2d``, in operations that any size goes through.

    Args:
        height: of what it gives.
        width: of what it gives.

    Shape:
        x: (B, C, h, w) -> (B, C, height, width).
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """The means of the bins."""
        rows, columns = _weights(self.height, x.shape[-2], x), _weights(self.width, x.shape[-1], x)
        return rows @ x @ columns.transpose(0, 1)


def _weights(bins: int, length: int, like: Tensor) -> Tensor:
    """(bins, length), each row 1 / n in the n positions of its bin."""
    numbers = torch.arange(bins, device=like.device)[:, None]
    positions = torch.arange(length, device=like.device)[None]
    first, end = numbers * length // bins, ((numbers + 1) * length + bins - 1) // bins
    inside = ((positions >= first) & (positions < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def with_matrix_pools(network: ModuleT) -> ModuleT:
    """A copy of a network whose adaptive average pools to more than one position are products of matrices.

    Without such a pool it is the network itself.
    """
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.AdaptiveAvgPool2d):
            given = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * 2
            if None not in given and given != (1, 1):
                found[name] = MatrixPool(*map(int, given))  # type: ignore[arg-type]  # none of them is None
    if not found:
        return network
    made = copy.deepcopy(network)
    for name, pool in found.items():
        made.set_submodule(name, pool)
    return made
