"""How a model that was given is run to be counted: on one batch of zeros, in eval mode or as in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from foveate.accounting.counting.formulas import tensors_in
from foveate.accounting.counting.products import Arguments, Keywords
from foveate.arguments import not_a_network
from foveate.kernels.dispatch import use_fused
from foveate.model_info import device_and_dtype, unwrapped

__all__ = ["images_for", "network_of", "quick_output", "run", "total"]


def network_of(given: object) -> nn.Module:
    """The network, out of what ``torch.compile`` and data parallelism put around it.

    Raises:
        FoveateError: it is not a network, but perhaps the name of one.
    """
    if isinstance(given, nn.Module):
        return given if isinstance(given, torch.jit.ScriptModule) else unwrapped(given)
    raise not_a_network(given)


def images_for(model: nn.Module, size: tuple[int, int, int], batch_size: int = 1) -> Tensor:
    """Images of zeros, (B, C, H, W), in a model's dtype and on its device."""
    device, dtype = device_and_dtype(model)
    return torch.zeros(batch_size, *size, dtype=dtype, device=device)


def run(model: nn.Module, images: Tensor, *, fused: bool = False) -> Any:
    """Run a copy of a model as its device would, whether there is data or not; returns what the model gives.

    Args:
        model: a copy.
        images: (B, C, H, W).
        fused: let our modules take other operations where they may. Without it the definition is counted, whatever
            computes it.
    """
    with use_fused(fused), _AsOnTheDevice():
        return model(images)


def total(output: object) -> Tensor:
    """One number that depends on everything in an output that has a gradient."""
    parts = output.values() if isinstance(output, dict) else [output]
    found = [tensor.float().sum() for tensor in tensors_in(list(parts)) if tensor.requires_grad]
    return torch.stack(found).sum() if found else torch.zeros(())


class _AsOnTheDevice(TorchFunctionMode):
    """Two functions do without data what they do not do with it.

    ``scaled_dot_product_attention`` writes out all pairs; with data a fused kernel spares them. ``batch_norm`` refuses
    to train on one value for each channel, which says nothing about its cost.
    """

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention and args and args[0].is_meta:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    arguments = (input, weight, bias, running_mean, running_var, training, momentum, eps)
    return torch.batch_norm(*arguments, torch.backends.cudnn.enabled)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The fused kernel where one takes these tensors: the CPU's where all widths are equal, else CUDA's."""
    rows = (query, key, value)
    fused = dropout_p == 0.0 and not enable_gqa and all(x.ndim == 4 and x.shape[:2] == query.shape[:2] for x in rows)
    fused = fused and all(x.stride(3) == 1 or x.shape[3] == 1 for x in rows)
    if not fused or (attn_mask is not None and (attn_mask.ndim not in (2, 4) or attn_mask.requires_grad)):
        return F.scaled_dot_product_attention(
            *rows, attn_mask, dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zero, hidden = (attn_mask.new_full((), number, dtype=query.dtype) for number in (0.0, float("-inf")))
        attn_mask = torch.where(attn_mask, zero, hidden)
    if query.shape[3] == value.shape[3]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        y: Tensor = flash(*rows, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
        return y
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    gradient = torch.is_grad_enabled() and any(x.requires_grad for x in rows)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = efficient(*rows, attn_mask, gradient, 0.0, is_causal, scale=scale)[0]
    return out


def _like_the_first(args: Arguments) -> Tensor:
    return torch.empty_like(args[0])


def _batch_norm_output(args: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    x, training = args[0], args[5]
    mean, deviation = (x.new_empty(x.shape[1] if training else 0) for _ in range(2))
    return torch.empty_like(x), mean, deviation


def _layer_norm_output(args: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    x, axes = args[0], len(args[1])
    shape = (*x.shape[: x.ndim - axes], *[1] * axes)
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(shape), x.new_empty(shape)


def _like_the_larger(args: Arguments) -> Tensor | None:
    """Of a sum or product, where one side spreads over the other and the other is dense."""
    x, y = args[:2]
    if not isinstance(y, Tensor):
        return torch.empty_like(x) if isinstance(y, int | float) else None
    if x.numel() < y.numel() or x.ndim < y.ndim:
        x, y = y, x
    dense = (
        x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.is_contiguous()
    )
    fits = all(b in (1, a) for a, b in zip(reversed(x.shape), reversed(y.shape), strict=False))
    return torch.empty_like(x) if dense and fits and x.ndim >= y.ndim and x.dtype == y.dtype and y.is_meta else None


def _product_output(args: Arguments) -> Tensor | None:
    """Of a matrix product; None where the sides do not fit, which torch then says."""
    x, y = args[-2:]
    fits = x.shape[-1] == y.shape[-2] and x.shape[:-2] == y.shape[:-2] and x.dtype == y.dtype
    return x.new_empty(*x.shape[:-1], y.shape[-1]) if fits else None


_SAME_SHAPE = ("relu", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardsigmoid", "hardswish", "leaky_relu", "elu")
# Without data, torch works these out in Python, which is most of a pass. An in-place form gives its first argument.
_QUICK: dict[str, Callable[[Arguments], object]] = {
    **{f"aten::{name}": _like_the_first for name in _SAME_SHAPE},
    **{f"aten::{name}_": lambda args: args[0] for name in _SAME_SHAPE},
    **{f"aten::{name}": _like_the_larger for name in ("add", "sub", "mul")},
    **{f"aten::{name}": _product_output for name in ("mm", "addmm", "bmm")},
    "aten::native_batch_norm": _batch_norm_output,
    "aten::native_layer_norm": _layer_norm_output,
}


def quick_output(name: str, args: Arguments) -> object:
    """What an operation gives for tensors without data, worked out quickly; None: only torch knows.

    Args:
        name: of the operation, as ``aten::relu``.
        args: its positional arguments.
    """
    make = _QUICK.get(name)
    floating = make is not None and isinstance(args[0], Tensor) and args[0].is_meta and args[0].is_floating_point()
    return make(args) if make is not None and floating else None
