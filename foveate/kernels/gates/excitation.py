"""SE in training on a CPU: seven reads and writes of x where the definition has eleven.

    z = mean_hw(x)      y = relu(W1 z + b1)      s = sigmoid(W2 y + b2)      out = s x
    ds = sum_hw(g x)    dz through both layers   dx = s g + dz / (h w)                    for the gradient g of out

Autograd writes s g, g x and their sums one after the other; here what goes through the mean is added in the
pass that writes s g. Kept for the backward pass are x, and of each image three vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.kernels.dispatch import is_batched
from foveate.kernels.gates import cpu

__all__ = ["excite"]


def excite(x: Tensor, *layers: Tensor | None) -> Tensor:
    """s x, with gradients.

    Args:
        x: (B, C, h, w), dense in either memory format, on a CPU, in a type for which the passes compile.
        layers: of the type of x, W1 (H, C), b1 (H) or None, W2 (C, H), b2 (C) or None.
    """
    out: Tensor = _Excitation.apply(x, *layers)
    return out


def _definition(x: Tensor, first: Tensor, bias: Tensor | None, second: Tensor, other: Tensor | None) -> Tensor:
    hidden = F.linear(x.mean(dim=(2, 3)), first, bias).relu()
    return x * F.linear(hidden, second, other).sigmoid()[:, :, None, None]


class _Excitation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, bias: Tensor | None, second: Tensor, other: Tensor | None
    ) -> Tensor:
        means = cpu.pool_positions(x, None, False, True)[:, 0]
        hidden = F.linear(means, first, bias).relu()
        weights = F.linear(hidden, second, other).sigmoid()
        ctx.save_for_backward(x, first, bias, second, other, means, hidden, weights)
        ctx.set_materialize_grads(False)
        return cpu.weigh_channels(x, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        gradient, given = gradients[0], ctx.saved_tensors[:5]
        if gradient is None:
            return (None,) * 5
        if torch.is_grad_enabled() or is_batched(gradient):  # create_graph, or several gradients at once
            return _by_definition(gradient, given, ctx.needs_input_grad)
        x, first, _, second, _ = given
        means, hidden, weights = ctx.saved_tensors[5:]
        gradient = gradient.contiguous(memory_format=_format_of(x))
        scores = cpu.dot_positions(x, gradient) * (weights * (1 - weights))
        inside = torch.ops.aten.threshold_backward(scores @ second, hidden, 0)  # of relu
        dx = None
        if ctx.needs_input_grad[0]:
            dx = cpu.weigh_channels(gradient, weights, (inside @ first) / (x.shape[2] * x.shape[3]))
        of_first, of_bias, of_second, of_other = ctx.needs_input_grad[1:]
        return (
            dx,
            inside.t() @ means if of_first else None,
            inside.sum(dim=0) if of_bias else None,
            scores.t() @ hidden if of_second else None,
            scores.sum(dim=0) if of_other else None,
        )


def _format_of(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _by_definition(gradient: Tensor, given: tuple[Any, ...], needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients by torch's operations, which can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        out = _definition(*given)
    wanted = [t for t, need in zip(given, needed, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=again))
    return tuple(next(found) if need else None for need in needed)
