"""The attention weights that fused attention does not give back, from the queries and keys that it got.

    W = softmax(q k^T scale + mask)        (B, heads, queries, tokens)

Where a network calls ``scaled_dot_product_attention``, its arguments are read and W is computed beside it, in the order
in which timm computes it without fused attention. Where a network computes W itself, W is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from foveate.errors import FoveateError

__all__ = ["attention_weights"]

Take = Callable[[str, Tensor], None]
"""Gets the dotted name of an attention module, and its weights (B, heads, queries, tokens)."""
_SOFTMAX = frozenset({Tensor.softmax, torch.softmax, F.softmax})


class _Calls(TorchFunctionMode):
    """Reads what fused attention is asked, and the softmax of modules that have no dropout of their weights to read."""

    def __init__(self, found: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.found = found
        self.fused = self.by_hand = False

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if self.fused and func is F.scaled_dot_product_attention:
            self.found(_weights(*args, **kwargs))
        result = func(*args, **kwargs)
        if self.by_hand and func in _SOFTMAX:
            self.found(result)
        return result


def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001 - the arguments of scaled_dot_product_attention
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - in evaluation mode there is none
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What ``scaled_dot_product_attention`` weighs the values by."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query * scale @ key.transpose(-2, -1)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    elif attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if hidden else scores + attn_mask
    return scores.softmax(dim=-1)


@contextlib.contextmanager
def attention_weights(
    model: nn.Module, names: Sequence[str], handles: list[RemovableHandle], take: Take
) -> Iterator[None]:
    """Inside, when the model runs, the weights of some of its attention modules are handed over, one after the other.

    Args:
        model: in evaluation mode.
        names: the dotted names of attention modules.
        handles: takes the hooks' handles; who made the list removes them.
        take: gets the name and the weights of each.

    Raises:
        FoveateError: a module does not run, or has no one map of weights.
    """
    found: dict[str, list[Tensor]] = {}
    now: list[str] = []

    def keep(weights: Tensor) -> None:
        found[now[-1]].append(weights.detach())

    calls = _Calls(keep)

    def enter(name: str, module: nn.Module) -> Callable[..., object]:
        fused = bool(getattr(module, "fused_attn", False))
        dropout = isinstance(getattr(module, "attn_drop", None), nn.Module)

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
            now.append(name)
            found[name] = []
            calls.fused, calls.by_hand = fused, not fused and not dropout
            if isinstance(module, nn.MultiheadAttention):  # torch's own computes and returns them when it is asked
                return args, {**kwargs, "need_weights": True, "average_attn_weights": False}
            return None

        return hook

    def leave(module: nn.Module, _: object, output: object) -> None:
        if isinstance(module, nn.MultiheadAttention) and isinstance(output, tuple) and output[1] is not None:
            found[now[-1]] = [output[1].detach()]
        calls.fused = calls.by_hand = False
        name = now.pop()
        weights = found.pop(name)
        if len(weights) != 1 or weights[0].ndim != 4:
            raise FoveateError(
                f"the attention weights of {name!r} ({type(module).__name__}) are not one map for each head: use "
                "method='gradcam'"
            )
        take(name, weights[0])
        found[name] = []

    for name in names:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(enter(name, module), with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
        dropout = getattr(module, "attn_drop", None)
        if not getattr(module, "fused_attn", False) and isinstance(dropout, nn.Module):
            handles.append(dropout.register_forward_pre_hook(lambda _, inputs: keep(inputs[0])))
    with calls:
        yield
    silent = [name for name in names if name not in found]
    if silent:
        raise FoveateError(f"{silent[0]!r} does not run when the model sees an image: use method='gradcam'")
