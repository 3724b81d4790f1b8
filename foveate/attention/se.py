"""SE: squeeze-and-excitation, a weight for each channel from the channels' means.

Hu, Shen, Albanie, Sun, Wu: Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507

    z = mean_hw(x)        s = sigmoid(W2 relu(W1 z))        out = s * x

As in the authors' code: both layers have biases (``bias=False`` gives the paper's printed count, 2 m^2 / r).
``forward`` infers in the passes of ``foveate.kernels.gates.op`` where there are some, and trains in those of
``foveate.kernels.gates.excitation``; ``attend`` is the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.attention._gates import layers_of, trains_in_passes, use_fused_path
from foveate.errors import FoveateError
from foveate.kernels.dispatch import Built
from foveate.kernels.gates import excitation
from foveate.kernels.gates import op as gates_op
from foveate.kernels.pooled import mean_over

__all__ = ["SE"]


class SE(nn.Module):
    """Squeeze-and-excitation.

    Args:
        channels: m, the channels of x.
        reduction: r, the hidden layer has max(1, m // r) units. The paper: 16.
        bias: whether the two layers have biases.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: (B, m), in 0..1.

    Raises:
        FoveateError: ``reduction`` is less than 1.
    """

    map_axes = "b c"

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = True) -> None:
        super().__init__()
        if reduction < 1:
            raise FoveateError(f"se(reduction={reduction}): the reduction is at least 1; the paper takes 16")
        self.reduction = reduction
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def attend(self, x: Tensor) -> Tensor:
        """The channel weights s, (B, m)."""
        scores: Tensor = self.fc2(F.relu(self.fc1(mean_over(x, [2, 3]))))
        return scores.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """s * x."""
        if not torch._jit_internal.is_scripting():
            fused = use_fused_path(self, x, _BUILT) and _is_large(x)
            trained = not fused and not torch.compiler.is_compiling() and trains_in_passes(self, x, _BUILT)
            if fused:
                return self._infer(x)
            if trained:
                return excitation.excite(x, *layers_of(self))
        return x * self.attend(x)[:, :, None, None]

    def _infer(self, x: Tensor) -> Tensor:
        """``forward`` in two passes over x."""
        out = gates_op.whole_gate(x, "channel", 1, layers_of(self))
        if out is not None:
            return out
        means = gates_op.pool_positions(x, most=False, mean=True)[:, 0]
        return gates_op.gate(x, self.fc2(F.relu(self.fc1(means))))

    def paper_cost(self, channels: int, height: int, width: int) -> tuple[int, int]:
        """Parameters and MACs as the paper counts them: 2 m^2 / r each."""
        return (2 * channels**2 // self.reduction,) * 2


_ELEMENTS, _POSITIONS = 1 << 20, 400


def _is_large(x: Tensor) -> bool:
    """Whether one call of the passes takes less time on a CPU than the definition's steps: benchmarks/mechanisms.py.

    Of a small map the two layers are the larger part, and torch's products of matrices are the faster ones.
    """
    return not x.is_cpu or (x.numel() >= _ELEMENTS and x.shape[2] * x.shape[3] >= _POSITIONS)


_BUILT = Built({"fc1": nn.Linear, "fc2": nn.Linear}, {"attend": SE.attend})
