"""CBAM: a weight for each channel, then a weight for each spatial position.

Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018, https://arxiv.org/abs/1807.06521

    Mc(F) = sigmoid(MLP(mean_hw F) + MLP(max_hw F))                  one MLP, one sigmoid after the sum
    Ms(F) = sigmoid(BN(conv7x7([max_c F; mean_c F])))
    F'    = Mc(F) * F        out = Ms(F') * F'

As in the authors' code: a batch norm after the spatial convolution, which the paper does not mention. Unlike there, it
starts with gamma 1, not 0, and its momentum is PyTorch's 0.1, not 0.01.
The options are the ablations of the paper's tables 1 to 3.
``forward`` infers in the passes of ``foveate.kernels.gates.op`` where there are some, with ``spatial="pool"`` and in
any order; ``attend`` is the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.attention._gates import layers_of, use_fused_path
from foveate.errors import FoveateError, near
from foveate.kernels.dispatch import Built
from foveate.kernels.gates import op as gates_op
from foveate.kernels.pooled import largest_over, mean_over

__all__ = ["CBAM"]

CHANNEL_POOLS = ("both", "avg", "max")
SPATIAL = ("pool", "conv")
ORDERS = ("channel-spatial", "spatial-channel", "parallel", "channel", "spatial")


class CBAM(nn.Module):
    """Convolutional block attention.

    Args:
        channels: m, the channels of x.
        reduction: r, the MLP's hidden layer has max(1, m // r) units. The paper: 16.
        kernel_size: of the spatial convolution, odd. The paper: 7, against 3.
        channel_pool: ``both`` (the paper), ``avg`` or ``max``.
        spatial: how channels are squeezed for the spatial map: ``pool`` (maximum and mean; the paper) or ``conv``, 1x1.
        order: ``channel-spatial`` (the paper), ``spatial-channel``, ``parallel`` (both from F, multiplied), or one of
            the two alone: ``channel``, ``spatial``.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: (B, m, h, w), in 0..1; the output is the map times x.

    Raises:
        FoveateError: an option is none of those listed.
    """

    map_axes = "b c h w"

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        kernel_size: int = 7,
        channel_pool: str = "both",
        spatial: str = "pool",
        order: str = "channel-spatial",
    ) -> None:
        super().__init__()
        for option, value, allowed in (
            ("channel_pool", channel_pool, CHANNEL_POOLS),
            ("spatial", spatial, SPATIAL),
            ("order", order, ORDERS),
        ):
            if value not in allowed:
                raise FoveateError(f"cbam({option}={value!r}) does not exist; {near(value, allowed)}")
        if reduction < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise FoveateError(
                f"cbam(reduction={reduction}, kernel_size={kernel_size}): the reduction is at least 1, the kernel odd"
            )
        self.reduction, self.kernel_size = reduction, kernel_size
        self.channel_pool, self.spatial, self.order = channel_pool, spatial, order
        if order != "spatial":
            hidden = max(1, channels // reduction)
            self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        if order != "channel":
            self.squeeze = nn.Conv2d(channels, 1, 1, bias=False) if spatial == "conv" else None
            planes = 2 if spatial == "pool" else 1
            self.conv = nn.Conv2d(planes, 1, kernel_size, padding=kernel_size // 2, bias=False)
            self.bn = nn.BatchNorm2d(1)

    def attend_channels(self, x: Tensor) -> Tensor:
        """Mc, (B, m, 1, 1)."""
        if self.channel_pool == "max":
            scores: Tensor = self.fc2(F.relu(self.fc1(largest_over(x, [2, 3]))))
        else:
            scores = self.fc2(F.relu(self.fc1(mean_over(x, [2, 3]))))
            if self.channel_pool == "both":
                scores = scores + self.fc2(F.relu(self.fc1(largest_over(x, [2, 3]))))
        return scores.sigmoid()[:, :, None, None]

    def attend_positions(self, x: Tensor) -> Tensor:
        """Ms, (B, 1, h, w)."""
        if self.squeeze is None:
            planes = torch.cat([largest_over(x, [1], True), mean_over(x, [1], True)], dim=1)
        else:
            planes = self.squeeze(x)
        scores: Tensor = self.bn(self.conv(planes))
        return scores.sigmoid()

    def attend(self, x: Tensor) -> Tensor:
        """Mc * Ms, each computed from what the order gives it, (B, m, h, w)."""
        if self.order == "channel":
            return self.attend_channels(x).expand_as(x)
        if self.order == "spatial":
            return self.attend_positions(x).expand_as(x)
        if self.order == "parallel":
            return self.attend_channels(x) * self.attend_positions(x)
        if self.order == "channel-spatial":
            channels = self.attend_channels(x)
            return channels * self.attend_positions(x * channels)
        positions = self.attend_positions(x)
        return positions * self.attend_channels(x * positions)

    def forward(self, x: Tensor) -> Tensor:
        """The map times x."""
        if not torch._jit_internal.is_scripting():
            fused = self._use_fused_path(x)
            if fused:
                return self._infer(x)
        if self.order in ("channel", "spatial", "parallel"):
            return x * self.attend(x)
        if self.order == "channel-spatial":
            x = x * self.attend_channels(x)
            return x * self.attend_positions(x)
        x = x * self.attend_positions(x)
        return x * self.attend_channels(x)

    def _use_fused_path(self, x: Tensor) -> bool:
        if self.order != "channel" and self.spatial == "conv":
            return False
        return use_fused_path(self, x, _BUILT[self.order])

    def _infer(self, x: Tensor) -> Tensor:
        """``forward`` without writing what lies between: the passes take the scores, whose sigmoids are the maps."""
        out = self._at_once(x)
        if out is not None:
            return out
        channels = positions = None
        if self.order in ("channel", "channel-spatial", "parallel"):
            channels = self._score_channels(x, None)
        if self.order != "channel":
            planes = gates_op.pool_channels(x, channels if self.order == "channel-spatial" else None)
            positions = self.bn(self.conv(planes))
        if self.order == "spatial-channel":
            channels = self._score_channels(x, positions)
        return gates_op.gate(x, channels, positions)

    def _at_once(self, x: Tensor) -> Tensor | None:
        layers = layers_of(self) if self.order != "spatial" else ()
        conv: tuple[Tensor | None, ...] = ()
        eps, pools = 0.0, {"avg": 1, "max": 2, "both": 3}[self.channel_pool]
        if self.order != "channel":
            squeezed, norm, size = self.conv, self.bn, self.conv.weight.shape[3]
            same = (squeezed.stride, squeezed.padding, squeezed.dilation) == ((1, 1), (size // 2,) * 2, (1, 1))
            if not same or squeezed.bias is not None or squeezed.padding_mode != "zeros" or norm.training:
                return None
            conv, eps = (squeezed.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var), norm.eps
        return gates_op.whole_gate(x, self.order, pools, layers, conv, eps)

    def _score_channels(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """What the sigmoid of Mc gets, (B, m); the MLP takes both pools as one batch."""
        most, mean = self.channel_pool != "avg", self.channel_pool != "max"
        pooled = gates_op.pool_positions(x, positions, most=most, mean=mean)
        scores: Tensor = self.fc2(F.relu(self.fc1(pooled)))
        first, *others = scores.unbind(1)
        return sum(others, start=first)

    def paper_cost(self, channels: int, height: int, width: int) -> tuple[int, int]:
        """Parameters and MACs as the ULSAM paper's table counts them: 2 m^2 / r + 98, and 2 m^2 / r + 98 hw.

        Of one gate alone its own part; with ``spatial="conv"`` the gate of positions has m + k^2 in place of 2 k^2.
        """
        mlp = 2 * channels**2 // self.reduction if self.order != "spatial" else 0
        conv = 2 * self.kernel_size**2 if self.spatial == "pool" else channels + self.kernel_size**2
        conv = conv if self.order != "channel" else 0
        return mlp + conv, mlp + conv * height * width


_METHODS = {name: getattr(CBAM, name) for name in ("attend", "attend_channels", "attend_positions")}
_CHANNEL, _SPATIAL = {"fc1": nn.Linear, "fc2": nn.Linear}, {"conv": nn.Conv2d, "bn": nn.BatchNorm2d}
_BUILT = {
    "channel": Built(_CHANNEL, _METHODS),
    "spatial": Built(_SPATIAL, _METHODS),
    **dict.fromkeys(ORDERS[:3], Built({**_CHANNEL, **_SPATIAL}, _METHODS)),
}
