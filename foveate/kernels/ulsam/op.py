"""ULSAM as operations that torch knows: which device takes which kernel, shapes without data, gradients, counts.

    foveate::ulsam_infer(x, folded, groups)          -> x + A x
    foveate::ulsam_train(x, parameters, running, ..) -> x + A x, and what the backward pass and the batch norms need
    foveate::ulsam_train_backward(..)                -> gradients of x and of the parameters

What computes them is a backend's, see ``dispatch``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foveate.kernels.dispatch import dense, enabled, is_batched, no_active_modes, passes, ready, wide
from foveate.kernels.registration import library, registering
from foveate.kernels.ulsam.reference_training import Trained, plain

__all__ = ["evaluate", "fold", "infer", "train"]

_library = library()
with registering("ulsam"):
    _define: Callable[[str], object] = _library.define  # torch does not annotate it
    _define("ulsam_infer(Tensor x, Tensor folded, int groups) -> Tensor")
    _define(
        "ulsam_train(Tensor x, Tensor[] parameters, Tensor[] running, float eps, float point_eps) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    _define(
        "ulsam_train_backward(Tensor dy, Tensor x, Tensor[] parameters, Tensor[] running, float eps, float point_eps, "
        "Tensor map, Tensor score, Tensor mean, Tensor var) -> (Tensor, Tensor[])"
    )


# ---- inference ----


def fold(vectors: Sequence[Tensor], groups: int, eps: float, point_eps: float) -> Tensor:
    """Both batch norms folded into four vectors, (3C + g): scale (C), shift (C), point (C), bias (g).

    Args:
        vectors: of DW weight and bias, of its batch norm weight, bias, running mean and variance; the same six of PW.
        groups: g.
        eps: of the first batch norm.
        point_eps: of the second.
    """
    fused = enabled() and not torch.compiler.is_compiling() and _are_float32(vectors)
    if fused and ready(vectors[0].device.type, torch.float32).backend:
        folded: Tensor = passes(vectors[0]).fold(vectors, groups, eps, point_eps)
        return folded
    kind = wide(vectors[0])
    w, b, weight, bias, mean, var, pw, pb, pweight, pbias, pmean, pvar = (v.flatten().to(kind) for v in vectors)
    factor = weight * torch.rsqrt(var + eps)
    point_factor = pweight * torch.rsqrt(pvar + point_eps)
    point = (pw.view(groups, -1) * point_factor.unsqueeze(1)).flatten()
    return torch.cat([w * factor, (b - mean) * factor + bias, point, (pb - pmean) * point_factor + pbias])


def _are_float32(vectors: Sequence[Tensor]) -> bool:
    return all(v.dtype is torch.float32 and v.is_contiguous() for v in vectors)


def infer(x: Tensor, folded: Tensor, groups: int) -> Tensor:
    """x + A x from folded vectors, without gradients.

    Args:
        x: (B, C, h, w), for which ``choose`` has a backend.
        folded: (3C + g), of ``fold``.
        groups: g.
    """
    return _infer(x, folded, groups) if no_active_modes() else torch.ops.foveate.ulsam_infer.default(x, folded, groups)


def evaluate(x: Tensor, vectors: Sequence[Tensor], groups: int, eps: float, point_eps: float) -> Tensor:
    """``infer`` with what ``fold`` gives for the same vectors, in fewer steps where no mode is active."""
    at_once = getattr(passes(x), "evaluate", None)
    if at_once is not None and no_active_modes():
        out: Tensor | None = at_once(dense(x), vectors, groups, eps, point_eps)
        if out is not None:
            return out
    return infer(x, fold(vectors, groups, eps, point_eps), groups)


def _infer(x: Tensor, folded: Tensor, groups: int) -> Tensor:
    if x.ndim != 4 or groups < 1 or x.shape[1] % groups or folded.numel() != 3 * x.shape[1] + groups:
        raise _does_not_fit(x)
    x = dense(x)
    if folded.dtype is not torch.float32 or x.dtype is torch.float64:
        folded = folded.to(wide(x))
    out: Tensor = passes(x).infer(x, folded, groups)
    return out


# ---- training ----


def train(
    x: Tensor, parameters: list[Tensor], running: list[Tensor], eps: float, point_eps: float
) -> tuple[Tensor, Tensor]:
    """x + A x with gradients; the batch norms take the statistics of the batch, or running ones where they are given.

    Args:
        x: (B, C, h, w), for which ``choose`` has a backend.
        parameters: DW weight and bias, its batch norm's weight and bias; the same four of PW.
        running: mean and variance of the first batch norm, of the second; an empty tensor: of the batch.
        eps: of the first batch norm.
        point_eps: of the second.

    Returns:
        The result; and what a running average takes in: mean and unbiased variance of both batch norms' inputs, of each
        where it is of the batch, (2C + 2g).
    """
    if no_active_modes():
        out, observed = _Step.apply(eps, point_eps, x, *parameters, *running)
    else:
        out, *_, observed = torch.ops.foveate.ulsam_train.default(x, parameters, running, eps, point_eps)
    return out, observed


class _Step(torch.autograd.Function):
    """``ulsam_train`` where no mode is active: the way through torch.library takes longer than a small step itself."""

    @staticmethod
    def forward(ctx: Any, eps: float, point_eps: float, x: Tensor, *vectors: Tensor) -> tuple[Tensor, Tensor]:
        made = passes(x).train_forward(x, vectors[:8], vectors[8:], eps, point_eps)
        _save(ctx, (x, vectors[:8], vectors[8:], eps, point_eps), made)
        ctx.mark_non_differentiable(made[5])
        return made[0], made[5]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        dx, small, *_ = _backward(ctx, gradients[0])
        return None, None, dx, *small, *[None] * 4


def _train(x: Tensor, parameters: list[Tensor], running: list[Tensor], *eps: float) -> Trained:
    _check(x, parameters, running)
    made: Trained = passes(x).train_forward(x, parameters, running, *eps)
    return made


def _train_backward(
    dy: Tensor, x: Tensor, parameters: list[Tensor], running: list[Tensor], *rest: Any
) -> tuple[Tensor, list[Tensor]]:
    _check(x, parameters, running)
    _, _, attention, score, mean, var = rest
    maps = (x.shape[0], parameters[5].numel(), *x.shape[2:])
    kept = 0 if running[0].numel() else x.shape[1]
    if dy.shape != x.shape or {attention.shape, score.shape} != {maps} or {mean.numel(), var.numel()} != {kept}:
        raise _does_not_fit(x)
    gradients: tuple[Tensor, list[Tensor]] = passes(x).train_backward(dy, x, parameters, running, *rest)
    return gradients


def _check(x: Tensor, parameters: Sequence[Tensor], running: Sequence[Tensor]) -> None:
    """Refuse what does not belong together in a direct call of an operation: the passes would read beyond it.

    Raises:
        RuntimeError: the parameters or the statistics are not those of as many channels as x has.
    """
    channels, groups = x.shape[1] if x.ndim == 4 else 0, parameters[5].numel() if len(parameters) == 8 else 0
    if not channels or not groups or channels % groups:
        raise _does_not_fit(x)
    sizes, known = [channels] * 5 + [groups] * 3, [t.numel() for t in running]
    pairs = [known[:2] in ([0, 0], [channels] * 2), known[2:] in ([0, 0], [groups] * 2)]
    if [p.numel() for p in parameters] != sizes or not all(pairs):
        raise _does_not_fit(x)


def _does_not_fit(x: Tensor) -> RuntimeError:
    return RuntimeError(f"foveate::ulsam: the parameters do not fit an input of shape {tuple(x.shape)}")


# ---- shapes without data, gradients ----


def _infer_shape(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(dense(x))


def _train_shape(x: Tensor, parameters: list[Tensor], running: list[Tensor], *_: object) -> Trained:
    channels, groups = x.shape[1], parameters[5].numel()
    batch, point_batch = not running[0].numel(), not running[2].numel()
    attention, score = (x.new_empty((x.shape[0], groups, *x.shape[2:]), dtype=wide(x)) for k in range(2))
    kept = channels if batch else 0  # a product of symbol and truth value is none for SymPy, in older versions of torch
    lengths = (kept, kept, 2 * kept + (2 * groups if point_batch else 0))
    mean, var, observed = (x.new_empty(n, dtype=wide(x)) for n in lengths)
    return torch.empty_like(dense(x)), attention, score, mean, var, observed


def _train_backward_shape(_: Tensor, x: Tensor, parameters: list[Tensor], *__: object) -> tuple[Tensor, list[Tensor]]:
    return torch.empty_like(dense(x)), [torch.empty_like(p) for p in parameters]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Trained) -> None:
    x, parameters, running, ctx.eps, ctx.point_eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *parameters, *running, *output[1:5])


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None:
        return None, [None] * 8, [None] * 4, None, None
    x, *rest = ctx.saved_tensors
    parameters, running, saved = rest[:8], rest[8:12], rest[12:]
    if torch.is_grad_enabled() or is_batched(dy):  # create_graph, or several gradients at once
        dx, *small = _by_definition(dy, (x, *parameters), running, ctx.eps, ctx.point_eps)
    else:
        run = passes(x).train_backward if no_active_modes() else torch.ops.foveate.ulsam_train_backward.default
        dx, small = run(dy, x, parameters, running, ctx.eps, ctx.point_eps, *saved)
    return dx, small, [None] * 4, None, None


def _by_definition(
    dy: Tensor, given: Sequence[Tensor], running: Sequence[Tensor], eps: float, point_eps: float
) -> list[Tensor | None]:
    """The gradients of x and the parameters, by torch's operations: they can be differentiated again.

    As in the passes the types of x and of the parameters may differ, as under autocast, and sums are wide.
    """
    again, kind = torch.is_grad_enabled(), wide(given[0])
    with torch.enable_grad(), torch.autocast(dy.device.type, enabled=False):
        x, *parameters = (t.to(kind) for t in given)
        out = plain(x, parameters, [t.to(kind) for t in running], eps, point_eps).to(given[0].dtype)
    wanted = [t for t in given if t.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, dy, create_graph=again, allow_unused=True))
    return [next(found) if t.requires_grad else None for t in given]


def _flops(x: torch.Size, *_: object, **__: object) -> int:
    """2 for each MAC, as torch counts: DW and PW have one MAC for each element of x each."""
    return 4 * x.numel()


def _backward_flops(dy: torch.Size, *_: object, **__: object) -> int:
    """The gradients of the input and of the weights of both."""
    return 8 * dy.numel()


with registering("ulsam"):
    _implement: Callable[[str, Callable[..., object], str], object] = _library.impl
    for _device in ("CPU", "CUDA"):
        _implement("ulsam_infer", _infer, _device)
        _implement("ulsam_train", _train, _device)
        _implement("ulsam_train_backward", _train_backward, _device)
    torch.library.register_fake("foveate::ulsam_infer", _infer_shape, lib=_library)
    torch.library.register_fake("foveate::ulsam_train", _train_shape, lib=_library)
    torch.library.register_fake("foveate::ulsam_train_backward", _train_backward_shape, lib=_library)
    torch.library.register_autograd("foveate::ulsam_train", _backward, setup_context=_save, lib=_library)
    register_flop_formula([torch.ops.foveate.ulsam_infer, torch.ops.foveate.ulsam_train])(_flops)
    register_flop_formula(torch.ops.foveate.ulsam_train_backward)(_backward_flops)
