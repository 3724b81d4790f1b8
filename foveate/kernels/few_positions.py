"""1x1 convolutions of maps with few positions, as matrix products of rows: one row for each position.

    conv(x)_i = W x_i + b        for each position i

PyTorch's convolutions share such small work badly among threads: with two of them ``position`` on one 7x7 map of 1024
channels takes 0.5 to 0.6 of the time by rows (benchmarks/mechanisms_few_positions.csv). Gradients are autograd's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.kernels.dispatch import PLAIN, Built, enabled, is_eager, is_followed, modification
from foveate.kernels.softmax_attention import softmax_attention, softmax_map

__all__ = ["as_map", "attention", "is_plain", "project", "rows_of", "takes_rows"]

MOST_ROWS = 1024
"""Positions of all images up to which products of rows are the faster way."""

MOST_IN_A_MAP = 256
"""Positions up to which a map of all pairs takes less time than an attention whose queries are padded."""


def takes_rows(module: nn.Module, x: Tensor, built: Built) -> bool:
    """Whether a module may take ``project`` for its convolutions: few positions, float32, eager mode on a CPU.

    Args:
        module: whose children in ``built`` are all 1x1 convolutions.
        x: (B, C, h, w), its input.
        built: how it was built.
    """
    if type(x) is not Tensor or not x.is_cpu or x.dtype is not torch.float32 or x.ndim != 4:
        return False
    if not enabled() or not is_eager() or is_followed() or torch.is_autocast_enabled("cpu"):
        return False
    batch, _, height, width = x.shape
    if not 0 < batch * height * width <= MOST_ROWS or modification(module, built):
        return False
    convolutions = [child for name in built.children if isinstance(child := module._modules[name], nn.Conv2d)]
    return convolutions[0].in_channels == x.shape[1] and all(map(is_plain, convolutions))


def is_plain(conv: nn.Conv2d) -> bool:
    """Whether a layer is a 1x1 convolution of float32 on a CPU: somebody may have changed what was built."""
    if (conv.kernel_size, conv.stride, conv.padding, conv.groups) != ((1, 1), (1, 1), (0, 0), 1):
        return False
    if "_conv_forward" in conv.__dict__ or "bias" not in conv._parameters:
        return False
    weight, bias = conv._parameters.get("weight"), conv._parameters["bias"]
    if weight is None or weight.shape != (conv.out_channels, conv.in_channels, 1, 1):
        return False
    return _is_dense(weight) and (bias is None or (bias.shape == (conv.out_channels,) and _is_dense(bias)))


def _is_dense(parameter: Tensor) -> bool:
    alike = parameter.dtype is torch.float32 and parameter.is_cpu and parameter.layout is torch.strided
    return alike and type(parameter) in PLAIN


def rows_of(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h*w, C): a view of one image and of what lies channels last."""
    if x.shape[0] > 1:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.flatten(2).transpose(1, 2)


def project(conv: nn.Module, rows: Tensor) -> Tensor:
    """A 1x1 convolution, as ``takes_rows`` asks for, of rows, (B, n, C_in) -> (B, n, C_out)."""
    weight, bias = conv._parameters["weight"], conv._parameters["bias"]
    return F.linear(rows, weight.flatten(1), bias)  # type: ignore[union-attr]  # as takes_rows found it


def attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """``softmax_attention``, by the map itself where it is small and ``softmax_attention`` would have to pad."""
    if queries.shape[1] <= MOST_IN_A_MAP and queries.shape[2] < values.shape[2]:
        return softmax_map(queries, keys, scale) @ values
    return softmax_attention(queries.contiguous(), keys.contiguous(), values.contiguous(), scale)


def as_map(rows: Tensor, like: Tensor) -> Tensor:
    """(B, h*w, C) -> (B, C, h, w), a view, with the height and width of ``like``."""
    # Not transposed first: one image's stride would then be C, with which torch's batch norm gives wrong gradients.
    return torch.unflatten(rows, 1, like.shape[2:]).permute(0, 3, 1, 2)
