"""DANet's pair: position attention and channel attention of the same features, summed.

Fu, Liu, Tian, Li, Bao, Fang, Lu: Dual Attention Network for Scene Segmentation, CVPR 2019,
https://arxiv.org/abs/1809.02983

    out = P(x) + C(x)        P: ``position``, C: ``channel``; each of them is x + gamma times its own attention

Each term carries x, so the sum starts as 2x (``residual="each"``, as in the paper, whose head has convolutions around
each branch). With ``residual="once"`` it is P(x) + C(x) - x and starts as the identity.
"""

from __future__ import annotations

from torch import Tensor, nn

from foveate.attention.channel import ChannelAttention
from foveate.attention.position import PositionAttention
from foveate.errors import FoveateError, near

__all__ = ["DANet"]

RESIDUALS = ("each", "once")


class DANet(nn.Module):
    """Position and channel attention in parallel.

    Args:
        channels: m, the channels of x.
        reduction: of position attention's q and k: max(1, m // reduction) channels. The authors' code: 8.
        form: of channel attention: ``nearest`` (the paper) or ``farthest`` (the authors' code).
        residual: x is added by ``each`` branch (the paper) or ``once``.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: that of position attention, (B, N, h, w), N = h*w; the other is
        ``channel.attend(x)``, (B, m, m).

    Raises:
        FoveateError: ``form`` or ``residual`` is none of those listed, or ``reduction`` is less than 1.
    """

    map_axes = "b q h w"

    def __init__(self, channels: int, *, reduction: int = 8, form: str = "nearest", residual: str = "each") -> None:
        super().__init__()
        if residual not in RESIDUALS:
            raise FoveateError(f"danet(residual={residual!r}) does not exist; {near(residual, RESIDUALS)}")
        self.residual = residual
        self.position = PositionAttention(channels, reduction=reduction)
        self.channel = ChannelAttention(channels, form=form)

    def attend(self, x: Tensor) -> Tensor:
        """Position attention's map, (B, N, h, w)."""
        return self.position.attend(x)

    def forward(self, x: Tensor) -> Tensor:
        """P(x) + C(x), minus x where x counts once."""
        both: Tensor = self.position(x) + self.channel(x)
        return both if self.residual == "each" else both - x
