"""The multiply-adds (MACs) of what multiplies matrices: matrix products, convolutions, attention products.

Which operation computes an attention depends on torch's version, on the device and on the tensors, and torch's own
table of formulas (``torch.utils.flop_counter``) lacks some of them in some versions. So the operations that networks
are made of stand here; torch's table gives the rest. What is in neither and multiplies matrices by its name is named as
unsupported, never left out. A bias costs nothing more: the sum starts with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

__all__ = ["ATTENTION", "PRODUCTS", "Arguments", "Formula", "Keywords", "Output", "is_product", "macs_of"]

Arguments: TypeAlias = tuple[Any, ...]
"""The positional arguments of one call, as the dispatcher hands them on: each formula knows those of its operation."""

Keywords: TypeAlias = dict[str, Any]
"""Its keyword arguments."""

Output: TypeAlias = Any
"""What it gives: a tensor, or several."""

Formula = Callable[[Arguments, Keywords, Output], int]
"""(positional arguments, keyword arguments, output) of one call -> a count."""

# Fused attention, (query, key, value, ...) -> (output, ...), whoever computes it.
ATTENTION = tuple(
    f"aten::_scaled_dot_product_{kind}"
    for kind in (
        *("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"),
        *("fused_attention_overrideable", "attention_math_for_mps"),
    )
)


def _matrix_product(first: int) -> Formula:
    """As many as the left side has elements, times the right side's columns.

    Args:
        first: where the left side stands among the arguments, and the right side behind it.
    """
    return lambda args, _kwargs, _out: args[first].numel() * args[first + 1].shape[-1]


def _size_of(first: int) -> Formula:
    """As many as one argument has elements."""
    return lambda args, _kwargs, _out: args[first].numel()


def _convolution(args: Arguments, _kwargs: Keywords, out: Tensor) -> int:
    """Each element of the output sums one filter's products; each of a transposed one's input spreads over one."""
    one_filter: Tensor = args[1][0]
    spread: Tensor = args[0] if args[6] else out
    return spread.numel() * one_filter.numel()


def _attention(args: Arguments, _kwargs: Keywords, _out: object) -> int:
    """(B, heads, L, E) queries with (B, heads or fewer, S, E) keys and (.., S, F) values: L x S x (E + F) a head."""
    query: Tensor
    key: Tensor
    value: Tensor
    query, key, value = args[:3]
    return query.numel() // query.shape[-1] * key.shape[-2] * (query.shape[-1] + value.shape[-1])


# By the operation's name, that of an in-place form without its last underscore.
PRODUCTS: dict[str, Formula] = {
    **{f"aten::{name}": _matrix_product(0) for name in ("mm", "bmm", "_int_mm")},
    **{f"aten::{name}": _matrix_product(1) for name in ("addmm", "baddbmm", "addbmm", "_addmm_activation")},
    **{f"aten::{name}": _size_of(0) for name in ("mv", "dot", "vdot")},
    "aten::addmv": _size_of(1),
    "aten::addr": lambda args, _kwargs, _out: args[1].numel() * args[2].numel(),
    **{f"aten::{name}": _convolution for name in ("convolution", "_convolution", "convolution_overrideable")},
    **dict.fromkeys(ATTENTION, _attention),
    "torchvision::deform_conv2d": lambda args, _kwargs, out: out.numel() * args[1][0].numel(),
    # A depthwise 1x1 convolution, and a weighted sum of all channels.
    **dict.fromkeys(("foveate::ulsam_infer", "foveate::ulsam_train"), lambda args, _kwargs, _out: 2 * args[0].numel()),
}

# Parts of the names of operations that multiply matrices.
_WORDS = re.compile(
    r"\w*mm|\w*mv|v?dot|vecdot|addr|ger|outer|inner|kron|\w*matmul|gemm|q?linear|bilinear|trilinear|einsum|cdist|"
    r"q?conv|q?conv(_?transpose)?\dd|convolution|deform|attention|mha|transformer|lstm|gru|rnn"
)


def macs_of(name: str) -> Formula | None:
    """The formula of an operation, such as ``aten::mm``: ours, or else torch's; None where neither has one."""
    return PRODUCTS.get(name) or _from_torch(name)


def is_product(name: str) -> bool:
    """Whether an operation multiplies matrices, as far as tables and its name tell."""
    operation = name.partition("::")[2]
    return macs_of(name) is not None or any(map(_WORDS.fullmatch, operation.strip("_").split("_")))


def _from_torch(name: str) -> Formula | None:
    library, _, operation = name.partition("::")
    formula = flop_registry.get(getattr(getattr(torch.ops, library), operation, None))
    if formula is None:
        return None
    return lambda args, kwargs, out: formula(*args, **kwargs, out_val=out) // 2  # torch counts a multiply-add as two
