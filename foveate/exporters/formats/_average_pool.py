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


class MatrixPool(nn.AdaptiveAvgPool2d):
    """The same as ``AdaptiveAvgPool2d``, in operations that any size goes through.

    Args:
        height: of what it gives.
        width: of what it gives.

    Shape:
        x: (B, C, h, w) -> (B, C, height, width).
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__((height, width))

    def forward(self, x: Tensor) -> Tensor:
        """The means of the bins."""
        height, width = _bins(self)
        rows, columns = _weights(height, x.shape[-2], x), _weights(width, x.shape[-1], x)
        return rows @ x @ columns.transpose(0, 1)


def _bins(pool: nn.AdaptiveAvgPool2d) -> tuple[int, int]:
    """Rows and columns of what a pool gives; 0 where it keeps those of its input."""
    given = pool.output_size if isinstance(pool.output_size, tuple | list) else (pool.output_size,) * 2
    height, width = (int(side or 0) for side in given)
    return height, width


def _weights(bins: int, length: int, like: Tensor) -> Tensor:
    """(bins, length), each row 1 / n in the n positions of its bin."""
    numbers = torch.arange(bins, device=like.device)[:, None]
    positions = torch.arange(length, device=like.device)[None]
    first, end = numbers * length // bins, ((numbers + 1) * length + bins - 1) // bins
    inside = ((positions >= first) & (positions < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def with_matrix_pools(network: ModuleT) -> ModuleT:
    """A copy of a network whose adaptive average pools to more than one position are products of matrices.

    They keep what hangs on them: hooks, and attention that was inserted after them. Without such a pool it is the
    network itself.
    """
    if not any(map(_is_fitting, network.modules())):
        return network
    made = copy.deepcopy(network)
    for module in filter(_is_fitting, made.modules()):
        module.__class__ = MatrixPool
    return made


def _is_fitting(module: nn.Module) -> bool:
    """Whether a module is an adaptive average pool to a fixed number of positions, with torch's own forward pass."""
    if not isinstance(module, nn.AdaptiveAvgPool2d) or "forward" in vars(module):
        return False
    return type(module).forward is nn.AdaptiveAvgPool2d.forward and 0 not in (bins := _bins(module)) and bins != (1, 1)
