"""DANet's channel attention: every channel adds a mean over all channels, weighted by how alike they are.

Fu, Liu, Tian, Li, Bao, Fang, Lu: Dual Attention Network for Scene Segmentation, CVPR 2019,
https://arxiv.org/abs/1809.02983

    E = A A^T, A = x as m x N        y = softmax_row(E) A        out = x + gamma y

gamma is one number, the only parameter; it starts at 0, so the module starts as the identity.
Unlike the authors' code: it takes softmax(max_row(E) - E), which gives the *least* similar channel the largest weight
(``form="farthest"``). As the maximum is one number for a row, that is softmax(-E).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.kernels.softmax_attention import softmax_attention, softmax_map

__all__ = ["ChannelAttention"]

torch.fx.wrap("softmax_attention")  # one step of torch.fx's trace, for it asks for shapes

FORMS = ("nearest", "farthest")


class ChannelAttention(nn.Module):
    """Channel attention.

    Args:
        channels: m, the channels of x; nothing depends on it.
        form: ``nearest``, softmax(E), the paper; ``farthest``, softmax(max(E) - E), the authors' code.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: (B, m, m): for each channel its weights over all channels, which
        sum to 1.

    Raises:
        FoveateError: ``form`` is none of those listed.

    A state dict of the authors' module (``gamma``) loads as it is.
    """

    map_axes = "b q c"

    def __init__(self, channels: int, *, form: str = "nearest") -> None:
        super().__init__()
        if form not in FORMS:
            raise FoveateError(f"channel(form={form!r}) does not exist; {near(form, FORMS)}")
        self.form = form
        self.gamma = nn.Parameter(torch.zeros(1))

    def attend(self, x: Tensor) -> Tensor:
        """softmax(E), or softmax(max(E) - E), (B, m, m)."""
        rows = x.flatten(2)
        return softmax_map(self._queries(rows), rows, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """The output, x + gamma y."""
        rows = x.flatten(2).contiguous()
        y = softmax_attention(self._queries(rows), rows, rows, 1.0)
        return x + self.gamma * torch.unflatten(y, 2, x.shape[2:])

    def _queries(self, rows: Tensor) -> Tensor:
        return rows if self.form == "nearest" else -rows
