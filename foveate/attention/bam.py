"""BAM: a channel branch and a dilated spatial branch, side by side, give one weight for every element.

Park, Woo, Lee, Kweon: BAM: Bottleneck Attention Module, BMVC 2018, https://arxiv.org/abs/1807.06514

    Mc  = MLP(mean_hw F)                                        m -> m/r -> m
    Ms  = conv1x1(conv3x3(conv3x3(conv1x1(F))))                 m -> m/r -> m/r -> m/r -> 1, dilation 4
    out = F + sigmoid(Mc + Ms) * F

As in the authors' code: ReLU between the layers, which the paper's formulas leave out, and a batch norm after each
hidden layer; the paper writes one at the end of each branch (``norm="end"``).
Unlike the authors' code: Mc + Ms, as in the paper, where the code multiplies (``combine="product"``). Their code cannot
be constructed (a name that does not exist) and pools a square only.
On a CPU ``forward`` infers in the passes of ``foveate.kernels.gates.op`` around the convolutions; ``attend`` is the
definition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.attention._gates import use_fused_path
from foveate.errors import FoveateError, near
from foveate.kernels.dispatch import Built
from foveate.kernels.gates import op as gates_op
from foveate.kernels.pooled import mean_over

__all__ = ["BAM"]

COMBINES = ("sum", "product")
NORMS = ("hidden", "end")


class BAM(nn.Module):
    """Bottleneck attention.

    Args:
        channels: m, the channels of x.
        reduction: r, the hidden layers have max(1, m // r) units. The paper: 16.
        dilation: of the two 3x3 convolutions. The paper: 4.
        combine: how the branches meet before the sigmoid: ``sum`` (the paper) or ``product`` (the authors' code).
        norm: where the batch norms are: after each ``hidden`` layer (the authors' code, and every published size) or
            at the ``end`` of each branch (the paper's formulas).

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: (B, m, h, w), in 0..1; the output is (1 + the map) times x.

    Raises:
        FoveateError: ``combine`` or ``norm`` is none of those listed, or ``reduction`` or ``dilation`` is less than 1.
    """

    map_axes = "b c h w"

    def __init__(
        self, channels: int, *, reduction: int = 16, dilation: int = 4, combine: str = "sum", norm: str = "hidden"
    ) -> None:
        super().__init__()
        for option, value, allowed in (("combine", combine, COMBINES), ("norm", norm, NORMS)):
            if value not in allowed:
                raise FoveateError(f"bam({option}={value!r}) does not exist; {near(value, allowed)}")
        if reduction < 1 or dilation < 1:
            raise FoveateError(
                f"bam(reduction={reduction}, dilation={dilation}): both are at least 1; the paper takes 16 and 4"
            )
        self.reduction, self.dilation, self.combine, self.norm = reduction, dilation, combine, norm
        hidden, inside = max(1, channels // reduction), norm == "hidden"
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.BatchNorm1d(hidden) if inside else nn.Identity(),
            nn.ReLU(),
            nn.Linear(hidden, channels),
            nn.Identity() if inside else nn.BatchNorm1d(channels),
        )
        self.spatial = nn.Sequential()
        for index in range(3):
            self.spatial.append(
                nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
                if index
                else nn.Conv2d(channels, hidden, 1)
            )
            if inside:
                self.spatial.append(nn.BatchNorm2d(hidden))
            self.spatial.append(nn.ReLU())
        self.spatial.append(nn.Conv2d(hidden, 1, 1))
        if not inside:
            self.spatial.append(nn.BatchNorm2d(1))

    def attend(self, x: Tensor) -> Tensor:
        """sigmoid(Mc + Ms), or of their product, (B, m, h, w)."""
        channels = self.channel(mean_over(x, [2, 3]))[:, :, None, None]
        positions = self.spatial(x)
        scores = channels + positions if self.combine == "sum" else channels * positions
        found: Tensor = scores.sigmoid()
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The map times x, added to x."""
        if not torch._jit_internal.is_scripting():
            fused = use_fused_path(self, x, _BUILT) and x.device.type == "cpu"
            if fused:
                return self._infer(x)
        return x + x * self.attend(x)

    def _infer(self, x: Tensor) -> Tensor:
        """``forward`` with one pass before the branches and one after them."""
        channels = self.channel(gates_op.pool_positions(x, most=False, mean=True)[:, 0])
        return gates_op.joint_gate(x, channels, self.spatial(x), product=self.combine == "product")

    def paper_cost(self, channels: int, height: int, width: int) -> tuple[int, int]:
        """Parameters and MACs as the ULSAM paper's table counts them.

        4 m^2 / r + 18 m^2 / r^2, and 2 m^2 / r + (4 m^2 / r + 18 m^2 / r^2) hw: it gives both branches the weights of
        both, so it counts more than there is.
        """
        mlp, convs = 2 * channels**2 // self.reduction, 18 * channels**2 // self.reduction**2
        return 2 * mlp + convs, mlp + (2 * mlp + convs) * height * width


_BUILT = Built({}, {"attend": BAM.attend})  # the branches are called as they are
