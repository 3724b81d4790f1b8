"""Identity: the control that every replacement needs, the same blocks taken out and nothing put there.

Veit, Wilber, Belongie: Residual Networks Behave Like Ensembles of Relatively Shallow Networks, NeurIPS 2016,
https://arxiv.org/abs/1605.06431, take single blocks out of trained residual networks in this way.

    out = x

It has no map (no ``attend``), no parameter and no operation.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Identity"]


class Identity(nn.Module):
    """Passes its input on.

    Args:
        channels: m, the channels of x.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w), the same tensor. It has no map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """The input itself."""
        return x

    def paper_cost(self, channels: int, height: int, width: int) -> tuple[int, int]:
        """No parameters, no MACs."""
        return 0, 0
