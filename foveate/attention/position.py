"""DANet's position attention: every position adds a mean over all positions, weighted by how alike they are.

Fu, Liu, Tian, Li, Bao, Fang, Lu: Dual Attention Network for Scene Segmentation, CVPR 2019,
https://arxiv.org/abs/1809.02983

    y_i = sum_j softmax_j(q_i . k_j) v_j        out = x + gamma y        q, k: 1x1, m/8 channels; v: 1x1, m channels

gamma is one number that starts at 0, so the module starts as the identity. The scores are not divided by sqrt(d).
As in the authors' code: q and k have m/8 channels; the paper writes m (``reduction=1``).
Unlike the authors' code: one fused attention, so the N x N map is not built in ``forward``, but where a whole batch
has so few positions that it takes less time (``foveate.kernels.few_positions``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.kernels import few_positions
from foveate.kernels.dispatch import Built
from foveate.kernels.softmax_attention import channels_last, flatten_positions, softmax_attention, softmax_map

__all__ = ["PositionAttention"]

torch.fx.wrap("softmax_attention")  # one step of torch.fx's trace, for it asks for shapes


class PositionAttention(nn.Module):
    """Position attention.

    Args:
        channels: m, the channels of x.
        reduction: q and k have max(1, m // reduction) channels. The authors' code: 8; the paper's text: 1.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: (B, N, h, w): for each of the N = h*w positions, in raster order, its
        weights over all positions, which sum to 1. Only ``attend`` builds it.

    Raises:
        FoveateError: ``reduction`` is less than 1.

    A state dict of the authors' module (``query_conv.weight``, ...) loads as it is.
    """

    map_axes = "b q h w"

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        if reduction < 1:
            raise FoveateError(f"position(reduction={reduction}): the reduction is at least 1; the authors take 8")
        self.reduction = reduction
        inside = max(1, channels // reduction)
        self.query_conv = nn.Conv2d(channels, inside, 1)
        self.key_conv = nn.Conv2d(channels, inside, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def attend(self, x: Tensor) -> Tensor:
        """softmax(q . k) of all pairs, (B, N, h, w): N^2 numbers for each image."""
        pairs = softmax_map(flatten_positions(self.query_conv(x)), flatten_positions(self.key_conv(x)), 1.0)
        return torch.unflatten(pairs, 2, x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """The output, x + gamma y."""
        source = x
        if not torch._jit_internal.is_scripting():
            if few_positions.takes_rows(self, x, _BUILT):
                return self._by_rows(x)
            source = channels_last(x)
        queries, keys = flatten_positions(self.query_conv(source)), flatten_positions(self.key_conv(source))
        values = flatten_positions(self.value_conv(source))
        y = softmax_attention(queries, keys, values, 1.0)
        return x + self.gamma * torch.unflatten(y.transpose(1, 2), 2, x.shape[2:])

    def _by_rows(self, x: Tensor) -> Tensor:
        rows = few_positions.rows_of(x)
        convolutions = (self.query_conv, self.key_conv, self.value_conv)
        queries, keys, values = (few_positions.project(conv, rows) for conv in convolutions)
        y = few_positions.attention(queries, keys, values, 1.0)
        return x + self.gamma * few_positions.as_map(y, x)


_BUILT = Built(dict.fromkeys(("query_conv", "key_conv", "value_conv"), nn.Conv2d), {})
