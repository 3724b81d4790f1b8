"""The passes of SE, CBAM and BAM in inference, as operations that torch knows; each reads x once.

    foveate::pool_positions(x, scores, most, mean) -> max and mean over positions of sigmoid(scores) x   (B, 1 or 2, C)
    foveate::pool_channels(x, scores)              -> max and mean over channels of sigmoid(scores) x    (B, 2, h, w)
    foveate::gate(x, channels, positions)          -> sigmoid(channels) sigmoid(positions) x             like x
    foveate::joint_gate(x, channels, positions, product) -> x + sigmoid(channels + positions) x          like x

No scores: x itself. CBAM is pool_positions, pool_channels and gate: three reads of x and one write, where the plain
form has six reads and two writes. On a device without a backend (see ``dispatch.GATES``) the operations are the plain
definitions below. There are no gradients. Where a backend has all of a gate in one call, ``whole_gate`` is that, and
for timm's ECA ``gate_along_channels``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foveate.kernels.dispatch import GATES, PLAIN, dense, no_active_modes, passes
from foveate.kernels.registration import library, registering

__all__ = ["gate", "gate_along_channels", "joint_gate", "pool_channels", "pool_positions", "whole_gate"]

_library = library()
with registering("gates"):
    _define: Callable[[str], object] = _library.define  # torch does not annotate it
    _define("pool_positions(Tensor x, Tensor? scores, bool most, bool mean) -> Tensor")
    _define("pool_channels(Tensor x, Tensor? scores) -> Tensor")
    _define("gate(Tensor x, Tensor? channels, Tensor? positions) -> Tensor")
    _define("joint_gate(Tensor x, Tensor channels, Tensor positions, bool product) -> Tensor")


# ---- the definitions ----


def pool_positions_plain(x: Tensor, scores: Tensor | None, most: bool, mean: bool) -> Tensor:
    """The plain definition of ``pool_positions``."""
    x = gate_plain(x, None, scores)
    pooled = [x.amax(dim=(2, 3))] if most else []
    return torch.stack([*pooled, x.mean(dim=(2, 3))] if mean else pooled, dim=1)


def pool_channels_plain(x: Tensor, scores: Tensor | None) -> Tensor:
    """The plain definition of ``pool_channels``."""
    x = gate_plain(x, scores, None)
    return torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)


def gate_plain(x: Tensor, channels: Tensor | None, positions: Tensor | None) -> Tensor:
    """The plain definition of ``gate``."""
    if channels is not None:
        x = x * channels.sigmoid()[:, :, None, None].to(x.dtype)
    return x if positions is None else x * positions.sigmoid().to(x.dtype)


def joint_gate_plain(x: Tensor, channels: Tensor, positions: Tensor, product: bool) -> Tensor:
    """The plain definition of ``joint_gate``."""
    channels = channels[:, :, None, None]
    scores = channels * positions if product else channels + positions
    return x + x * scores.sigmoid().to(x.dtype)


# ---- the operations ----


def pool_positions(x: Tensor, scores: Tensor | None = None, *, most: bool, mean: bool) -> Tensor:
    """Maximum and mean over positions of sigmoid(scores) x.

    Args:
        x: (B, C, h, w).
        scores: (B, 1, h, w); None: x as it is.
        most: whether the maximum is wanted.
        mean: whether the mean is wanted; at least one of them.

    Returns:
        (B, 1 or 2, C), the maximum first.
    """
    call = _pool_positions if no_active_modes() else torch.ops.foveate.pool_positions.default
    return call(x, scores, most, mean)


def pool_channels(x: Tensor, scores: Tensor | None = None) -> Tensor:
    """Maximum and mean over channels of sigmoid(scores) x.

    Args:
        x: (B, C, h, w).
        scores: (B, C); None: x as it is.

    Returns:
        (B, 2, h, w), the maximum first.
    """
    call = _pool_channels if no_active_modes() else torch.ops.foveate.pool_channels.default
    return call(x, scores)


def gate(x: Tensor, channels: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
    """sigmoid(channels) sigmoid(positions) x.

    Args:
        x: (B, C, h, w).
        channels: scores, (B, C); None: a weight of 1.
        positions: scores, (B, 1, h, w); None: a weight of 1.
    """
    call = _gate if no_active_modes() else torch.ops.foveate.gate.default
    return call(x, channels, positions)


def joint_gate(x: Tensor, channels: Tensor, positions: Tensor, *, product: bool) -> Tensor:
    """x + sigmoid(channels + positions) x.

    Args:
        x: (B, C, h, w).
        channels: scores, (B, C).
        positions: scores, (B, 1, h, w).
        product: the sigmoid of the scores' product, not of their sum.
    """
    call = _joint_gate if no_active_modes() else torch.ops.foveate.joint_gate.default
    return call(x, channels, positions, product)


def whole_gate(
    x: Tensor,
    order: str,
    pools: int,
    layers: Sequence[Tensor | None] = (),
    conv: Sequence[Tensor | None] = (),
    eps: float = 0.0,
) -> Tensor | None:
    """A gate from its parameters in one call; None where the backend cannot: then its passes serve.

    Args:
        x: (B, C, h, w), for which ``choose`` has a backend.
        order: ``channel``, ``spatial``, ``channel-spatial``, ``spatial-channel`` or ``parallel``.
        pools: of the channel gate: 1 the mean, 2 the maximum, 3 both.
        layers: weight and bias of both layers of the channel gate; a bias may be None. () without one.
        conv: weight of the spatial gate's convolution, and of its batch norm weight, bias, mean and variance. ()
            without one.
        eps: of the batch norm.
    """
    if not no_active_modes():
        return None
    at_once = getattr(passes(x, "gates"), "infer", None)
    if at_once is None:
        return None
    for tensor in (*layers, *conv):
        if tensor is not None and (type(tensor) not in PLAIN or tensor.dtype is not x.dtype or not tensor.is_cpu):
            return None
    if layers:
        first, bias, second, other = layers
        if first is None or second is None or first.shape != second.shape[::-1] or first.shape[1] != x.shape[1]:
            return None
        if (bias is not None and bias.shape != first.shape[:1]) or (other is not None and other.shape != x.shape[1:2]):
            return None
    if conv:
        weight, *norm = conv
        if (
            weight is None
            or weight.shape[:2] != (1, 2)
            or weight.shape[2] != weight.shape[3]
            or weight.shape[3] % 2 == 0
        ):
            return None
        if any(t is None or t.numel() != 1 for t in norm):
            return None
    out: Tensor = at_once(dense(x), _ORDERS.index(order), pools, layers, conv, eps)
    return out


def gate_along_channels(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, circular: bool) -> Tensor | None:
    """sigmoid(conv1d(mean_hw(x))) x, the convolution along the channels, in one call; None where the backend cannot.

    Args:
        x: (B, C, h, w), for which ``choose`` has a backend.
        weight: of the convolution, (1, 1, k), k odd; of a circle k at most 2 C + 1.
        bias: (1,), or None.
        circular: before the first channel is the last one; else zeros.
    """
    if not no_active_modes():
        return None
    at_once = getattr(passes(x, "gates"), "infer_along_channels", None)
    if at_once is None or weight is None or weight.ndim != 3:
        return None
    rows, planes, size = weight.shape
    if (rows, planes, size % 2) != (1, 1, 1) or (bias is not None and bias.shape != (1,)):
        return None
    if circular and size // 2 > x.shape[1]:
        return None
    for tensor in (weight, bias):
        if tensor is not None and (type(tensor) not in PLAIN or tensor.dtype is not x.dtype or not tensor.is_cpu):
            return None
    out: Tensor = at_once(dense(x), weight, bias, circular)
    return out


_ORDERS = ("channel", "spatial", "channel-spatial", "spatial-channel", "parallel")


def _pool_positions(x: Tensor, scores: Tensor | None, most: bool, mean: bool) -> Tensor:
    if x.device.type not in GATES or not _fit(x, None, scores):
        return pool_positions_plain(x, scores, most, mean)
    pooled: Tensor = passes(x, "gates").pool_positions(dense(x), _ready(scores), most, mean)
    return pooled


def _pool_channels(x: Tensor, scores: Tensor | None) -> Tensor:
    if x.device.type not in GATES or not _fit(x, scores, None):
        return pool_channels_plain(x, scores)
    pooled: Tensor = passes(x, "gates").pool_channels(dense(x), _ready(scores))
    return pooled


def _gate(x: Tensor, channels: Tensor | None, positions: Tensor | None) -> Tensor:
    if x.device.type not in GATES or not _fit(x, channels, positions):
        return gate_plain(dense(x), channels, positions)
    out: Tensor = passes(x, "gates").gate(dense(x), _ready(channels), _ready(positions))
    return out


def _joint_gate(x: Tensor, channels: Tensor, positions: Tensor, product: bool) -> Tensor:
    backend = passes(x, "gates") if x.device.type in GATES else None
    if not hasattr(backend, "joint_gate") or not _fit(x, channels, positions):
        return joint_gate_plain(dense(x), channels, positions, product)
    out: Tensor = backend.joint_gate(dense(x), channels, positions, product)  # type: ignore[union-attr]  # hasattr says so
    return out


def _fit(x: Tensor, channels: Tensor | None, positions: Tensor | None) -> bool:
    """Whether the scores are as many as a backend reads: a convolution that somebody changed gives others.

    Then the definition spreads them over x, or refuses them, as torch does.
    """
    of_channels = channels is None or (channels.shape == x.shape[:2] and channels.device == x.device)
    shape = (x.shape[0], 1, *x.shape[2:])
    return of_channels and (positions is None or (positions.shape == shape and positions.device == x.device))


def _ready(scores: Tensor | None) -> Tensor | None:
    return None if scores is None else scores.contiguous()


# ---- shapes without data ----


def _pool_positions_shape(x: Tensor, _scores: Tensor | None, most: bool, mean: bool) -> Tensor:
    return x.new_empty((x.shape[0], most + mean, x.shape[1]))


def _pool_channels_shape(x: Tensor, _scores: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], 2, *x.shape[2:]))


def _gate_shape(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(dense(x))


with registering("gates"):
    _implement: Callable[[str, Callable[..., object], str], object] = _library.impl
    for _name, _call, _shape in (
        ("pool_positions", _pool_positions, _pool_positions_shape),
        ("pool_channels", _pool_channels, _pool_channels_shape),
        ("gate", _gate, _gate_shape),
        ("joint_gate", _joint_gate, _gate_shape),
    ):
        for _device in ("CPU", "CUDA"):
            _implement(_name, _call, _device)
        torch.library.register_fake(f"foveate::{_name}", _shape, lib=_library)
