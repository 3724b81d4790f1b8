"""Mean and maximum over some axes with gradients in fewer passes over memory: the same numbers, to the bit, on a CPU.

The gradient of ``x.mean(dims)`` is written out over all of x and then divided. ``x.sum(dims) / n`` divides first, and
the rest is a view. The gradient of ``x.amax(dims)`` goes in equal parts to all elements that are the maximum; PyTorch
counts these in a mask of truth values that it turns into 64-bit integers. Here the mask is made of numbers at once.

Without gradients, on other devices, and wherever something follows the operations or turns them into others, these are
``mean`` and ``amax`` themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from foveate.kernels.dispatch import enabled, into_a_graph, is_transformed, no_active_modes

__all__ = ["largest_over", "mean_over"]


def mean_over(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    """``x.mean(dims, keepdim)``.

    Args:
        x: of a floating type.
        dims: the axes that go.
        keepdim: keep them with length 1.
    """
    if not torch._jit_internal.is_scripting():
        fewer = _has_gradients(x) and x.dtype in (torch.float32, torch.float64)  # half types would be rounded twice
        if fewer:
            count = 1
            for axis in dims:
                count *= x.shape[axis]
            return x.sum(dim=dims, keepdim=keepdim) / count
    return x.mean(dim=dims, keepdim=keepdim)


def largest_over(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    """``x.amax(dims, keepdim)``.

    Args:
        x: not empty.
        dims: the axes that go.
        keepdim: keep them with length 1.
    """
    if not torch._jit_internal.is_scripting():
        fewer = _has_gradients(x)
        if fewer:
            out: Tensor = _Largest.apply(x, dims)
            return out if keepdim else out.squeeze(dims)
    return x.amax(dim=dims, keepdim=keepdim)


def _has_gradients(x: Tensor) -> bool:
    """Whether a backward pass may come, in plain eager mode on a CPU."""
    if type(x) is not Tensor or not torch.is_grad_enabled() or not no_active_modes() or into_a_graph():
        return False
    return x.requires_grad and x.is_cpu and enabled() and not is_transformed() and forward_ad._current_level < 0


class _Largest(torch.autograd.Function):
    """The maximum over some axes, which stay with length 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: list[int]) -> Tensor:
        largest = x.amax(dim=dims, keepdim=True)
        ctx.save_for_backward(x, largest)
        ctx.dims = dims
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, largest = (saved.detach() for saved in ctx.saved_tensors)
        at = torch.eq(x, largest, out=torch.empty_like(x))
        return at * (gradient / at.sum(dim=ctx.dims, keepdim=True)), None
