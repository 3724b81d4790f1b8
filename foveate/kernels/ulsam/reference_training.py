"""One training step of ULSAM: the definition, and both passes put together from those of a CUDA backend.

    z = scale x + shift        score = bias + sum point * maxpool(relu(z))        A = softmax(relu(BN(score)))

Forward, x is read for its mean and variance (batch norm after a 1x1 convolution of one channel needs no more), for the
scores, and for the result; backward for dA, for dz, and for what goes through mean and variance. ``op.py`` registers
these functions and says what goes in and out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.kernels.dispatch import dense, passes, wide
from foveate.kernels.ulsam.reference import reweight, spatial_softmax

__all__ = ["Trained", "in_the_strides_of", "plain", "train_backward", "train_forward"]

Trained = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _scale_and_shift(
    vectors: list[Tensor], mean: Tensor, var: Tensor, eps: float, batch: bool
) -> tuple[Tensor, Tensor]:
    w, b, weight, bias = vectors[:4]
    if batch:  # mean and var are of x; the bias of the convolution cancels
        scale = weight * w * torch.rsqrt(w * w * var + eps)
        return scale, bias - scale * mean
    factor = weight * torch.rsqrt(var + eps)
    return w * factor, (b - mean) * factor + bias


def _folded(vectors: list[Tensor], mean: Tensor, var: Tensor, eps: float, batch: bool) -> Tensor:
    return torch.cat([*_scale_and_shift(vectors, mean, var, eps, batch), vectors[4], vectors[5]])


def _vectors(x: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.flatten().to(wide(x)) for p in parameters]


def in_the_strides_of(x: Tensor, dy: Tensor) -> Tensor:
    """dy, or a copy, in the type and the strides of x."""
    dy = dy.to(x.dtype)
    return dy if dy.stride() == x.stride() else torch.empty_like(x).copy_(dy)


def train_forward(x: Tensor, parameters: list[Tensor], running: list[Tensor], eps: float, point_eps: float) -> Trained:
    """``op.train`` on a device that has a backend."""
    x, backend = dense(x), passes(x)
    vectors, known = _vectors(x, parameters), _vectors(x, running)
    groups, n = vectors[5].numel(), x.numel() // x.shape[1]
    batch, point_batch = not known[0].numel(), not known[2].numel()
    mean, var = backend.moments(x) if batch else known[:2]
    score = backend.scores(x, _folded(vectors, mean, var, eps, batch), groups)
    seen = vectors[5].new_zeros(2, groups)  # momentum 1: the running statistics become the batch's
    score_mean, score_var = seen if point_batch else known[2:]
    weight, bias = vectors[6:]
    normal, _, _ = torch.native_batch_norm(score, weight, bias, score_mean, score_var, point_batch, 1.0, point_eps)
    attention = spatial_softmax(normal.relu_())
    out = backend.reweight(x, attention)
    w, b = vectors[:2]
    observed = [w * mean + b, w * w * var * (n / (n - 1))] if batch else []
    if point_batch:
        observed += [score_mean, score_var]
    if not batch:
        mean, var = w.new_empty(0), w.new_empty(0)
    return out, attention, score, mean, var, torch.cat(observed) if observed else w.new_empty(0)


def train_backward(
    dy: Tensor,
    x: Tensor,
    parameters: list[Tensor],
    running: list[Tensor],
    eps: float,
    point_eps: float,
    attention: Tensor,
    score: Tensor,
    mean: Tensor,
    var: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x and of the parameters, from dy and what ``train_forward`` gave."""
    x = dense(x)
    dy = in_the_strides_of(x, dy)
    backend, vectors, known = passes(x), _vectors(x, parameters), _vectors(x, running)
    groups, n = attention.shape[1], x.numel() // x.shape[1]
    batch, point_batch = mean.numel() > 0, not known[2].numel()
    if not batch:
        mean, var = known[:2]
    # The small maps: softmax, ReLU, batch norm.
    seen: list[Any] = [None, None] if point_batch else known[2:]
    weight, bias = vectors[6:]
    normal, *saved = torch.native_batch_norm(score, weight, bias, seen[0], seen[1], point_batch, 0.0, point_eps)
    dnormal = torch._softmax_backward_data(
        backend.map_gradient(x, dy, groups).flatten(2), attention.flatten(2), 2, score.dtype
    ).view_as(score)
    dscore, dpoint_weight, dpoint_bias = torch.ops.aten.native_batch_norm_backward(
        dnormal.masked_fill_(normal <= 0, 0), score, vectors[6], *seen, *saved, point_batch, point_eps, [True] * 3
    )
    # The large ones.
    folded = _folded(vectors, mean, var, eps, batch)
    dx, with_x, plain, dpoint = backend.gradients(x, dy, folded, attention, dscore.contiguous(), mean)
    w, b, weight = vectors[:3]
    if batch:  # with_x is centred already: the gradient of scale, through the shift, too
        r = torch.rsqrt(w * w * var + eps)
        dw, db, dweight = with_x * weight * eps * r**3, torch.zeros_like(b), with_x * w * r
        dvar = -0.5 * with_x * weight * w * w * w * r**3
        factor = dvar * (2 / n)
        constant = -weight * w * r * plain / n - factor * mean
        backend.add_affine_(dx, x, constant, factor)
    else:
        r = torch.rsqrt(var + eps)
        dw, db = (with_x + mean * plain) * weight * r, plain * weight * r
        dweight = r * (w * (with_x + mean * plain) + (b - mean) * plain)
    # Before a batch norm that subtracts the mean a bias does nothing.
    dpoint_shift = torch.zeros_like(dpoint_bias) if point_batch else dscore.sum((0, 2, 3))
    small = [dw, db, dweight, plain, dpoint, dpoint_shift, dpoint_weight, dpoint_bias]
    return dx, [g.view_as(p).to(p.dtype) for g, p in zip(small, parameters, strict=True)]


def plain(x: Tensor, parameters: list[Tensor], running: list[Tensor], eps: float, point_eps: float) -> Tensor:
    """The definition, which can be differentiated any number of times."""

    def normal(z: Tensor, weight: Tensor, bias: Tensor, known: list[Tensor], eps: float) -> Tensor:
        mean, var = known
        batch = not mean.numel()
        return F.batch_norm(z, None if batch else mean, None if batch else var, weight, bias, batch, eps=eps)

    w, b, weight, bias, pw, pb, pweight, pbias = parameters
    hidden = F.relu(normal(F.conv2d(x, w, b, groups=x.shape[1]), weight, bias, running[:2], eps))
    score = F.conv2d(F.max_pool2d(hidden, 3, 1, 1), pw, pb, groups=pb.numel())
    return reweight(x, spatial_softmax(F.relu(normal(score, pweight, pbias, running[2:], point_eps))))
