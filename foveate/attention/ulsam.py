"""ULSAM: a spatial softmax map for each group of channels, from 5m + 3g parameters.

Saini, Jha, Das, Mittal, Mohan: ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural
Networks, WACV 2020, https://arxiv.org/abs/2006.15102

    A_n   = softmax_hw(relu(BN(PW(maxpool3x3(relu(BN(DW(F_n))))))))      n = 1 .. g, G = m/g channels each
    out_n = F_n + A_n * F_n

As in the authors' code: biases in DW and PW, and a ReLU before the softmax, which the paper's formula leaves out.
Unlike the authors' code: the g subspaces are computed together (a grouped convolution is g convolutions), so the
number of operations does not depend on g; and the momentum of the batch norms is 0.1. Their 0.9 reads like
TensorFlow's convention: in PyTorch it makes the running statistics 90% the last batch.

Where ``foveate.kernels.ulsam.op`` has a fused kernel for the input, ``forward`` takes it; ``attend`` is the definition.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.kernels.children import are_as_built, wants_gradients
from foveate.kernels.dispatch import backend_for
from foveate.kernels.ulsam import op as ulsam_op
from foveate.kernels.ulsam.reference import reweight, spatial_softmax

__all__ = ["ULSAM"]


class ULSAM(nn.Module):
    """Ultra-lightweight subspace attention.

    Args:
        channels: m, the channels of x.
        groups: g, the number of subspaces; it divides ``channels``. The paper tries 1, 2, 4, 8, 16.
        momentum: of both batch norms, in PyTorch's convention. The authors' code has 0.9.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: (B, g, h, w), each map sums to 1 over h, w.

    Raises:
        FoveateError: ``groups`` does not divide ``channels``, or is less than 1.

    A state dict of the authors' module (``subspaces.0.conv_dws.weight``, ...) loads as it is.

    A hook on one of the four children, or another module in a child's place, sees what it would see without fused
    kernels: then none is used.
    """

    map_axes = "b g h w"
    folded: Tensor | None

    def __init__(self, channels: int, *, groups: int = 4, momentum: float = 0.1) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            fitting = ", ".join(str(g) for g in (1, 2, 4, 8, 16) if channels % g == 0)
            raise FoveateError(f"ulsam(groups={groups}) does not fit {channels} channels: take groups from {fitting}")
        self.channels, self.groups, self.momentum = channels, groups, momentum
        self.conv_dws = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn_dws = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv_point = nn.Conv2d(channels, groups, 1, groups=groups)
        self.bn_point = nn.BatchNorm2d(groups, momentum=momentum)
        self.register_buffer("folded", None, persistent=False)
        self.register_load_state_dict_pre_hook(_join_subspaces)

    def attend(self, x: Tensor) -> Tensor:
        """The maps A, (B, g, h, w)."""
        if self.folded is not None:
            return spatial_softmax(F.relu(ulsam_op.scores_folded(x, self.folded, self.groups)))
        hidden = F.relu(self.bn_dws(self.conv_dws(x)))
        hidden = F.max_pool2d(hidden, kernel_size=3, stride=1, padding=1)
        return spatial_softmax(F.relu(self.bn_point(self.conv_point(hidden))))

    def forward(self, x: Tensor) -> Tensor:
        """x + A * x, subspace by subspace."""
        if not backend_for(x) or not are_as_built(self._modules, _CHILDREN):
            return reweight(x, self.attend(x))
        folded = self._buffers["folded"]
        if folded is not None and not (x.requires_grad and torch.is_grad_enabled()):
            return ulsam_op.infer(x, folded, self.groups)
        children: Any = self._modules  # an attribute that is a child is a function call
        training = children["bn_dws"].training or children["bn_point"].training
        if not training and not wants_gradients(self, x):
            out = ulsam_op.evaluate(x, *self._statistics())
        else:
            out = self._train(x)
        return reweight(x, self.attend(x)) if out is None else out

    def _train(self, x: Tensor) -> Tensor | None:
        """Forward with gradients; each batch norm by its own mode, as in ``attend``. None: not as a fused step."""
        norms: tuple[Any, Any] = (self.bn_dws, self.bn_point)
        if not all(norm.affine and norm.track_running_stats and norm.momentum for norm in norms):
            return None
        if x.numel() == self.channels and any(norm.training for norm in norms):
            return None  # one value for each channel has no variance: torch says so
        parameters: list[Any] = [
            p for m in (self.conv_dws, norms[0], self.conv_point, norms[1]) for p in m._parameters.values()
        ]
        empty = x.new_empty(0, dtype=torch.float32)
        running = [t for m in norms for t in ([empty] * 2 if m.training else [m.running_mean, m.running_var])]
        if any(t is None for t in (*parameters, *running)):
            return None
        out, observed = ulsam_op.train(x, parameters, running, norms[0].eps, norms[1].eps)
        with torch.no_grad():
            for norm in (norm for norm in norms if norm.training):
                count = norm.num_features
                mean, var, observed = observed.split([count, count, observed.numel() - 2 * count])
                norm.num_batches_tracked.add_(1)
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
                norm.running_var.lerp_(var.to(norm.running_var.dtype), norm.momentum)
        return out

    def fuse(self) -> None:
        """Keep both batch norms folded into four vectors, for inference; ``train()`` and new weights discard them."""
        vectors, groups, eps, point_eps = self._statistics()
        if any(v is None for v in vectors):
            return  # the definition serves
        with torch.no_grad():
            self.folded = ulsam_op.fold(vectors, groups, eps, point_eps)

    def _statistics(self) -> tuple[list[Any], int, float, float]:
        """What ``fold`` takes."""
        children: Iterable[Any] = self._modules.values()
        conv, norm, point, point_norm = children
        mean, var, _ = norm._buffers.values()
        point_mean, point_var, _ = point_norm._buffers.values()
        first = [*conv._parameters.values(), *norm._parameters.values(), mean, var]
        second = [*point._parameters.values(), *point_norm._parameters.values(), point_mean, point_var]
        return first + second, self.groups, norm.eps, point_norm.eps

    def train(self, mode: bool = True) -> ULSAM:
        """As in torch; what ``fuse`` prepared is discarded when training starts."""
        if mode:
            self.folded = None
        return super().train(mode)

    def extra_repr(self) -> str:
        """The options, as they are written in a plan."""
        return f"{self.channels}, groups={self.groups}"

    @staticmethod
    def paper_cost(channels: int, height: int, width: int) -> tuple[int, int]:
        """Parameters and MACs as the paper counts them: 2m and 2mhw (no biases, no batch norms)."""
        return 2 * channels, 2 * channels * height * width


_CHILDREN = {
    "conv_dws": nn.Conv2d,
    "bn_dws": nn.BatchNorm2d,
    "conv_point": nn.Conv2d,
    "bn_point": nn.BatchNorm2d,
}


def _join_subspaces(module: ULSAM, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Rewrite the authors' keys, one set for each subspace, into ours: concatenated along the first axis."""
    module.folded = None  # of the weights before
    start = f"{prefix}subspaces."
    if not any(key.startswith(start) for key in state):
        return
    groups = module.groups
    for name in _names(module):
        parts = [state.pop(f"{start}{n}.{name}", None) for n in range(groups)]
        if any(part is None for part in parts):
            continue  # load_state_dict names what is missing
        state[prefix + name] = parts[0] if parts[0].ndim == 0 else torch.cat(parts)


def _names(module: nn.Module) -> Iterable[str]:
    return (name for name, _ in [*module.named_parameters(), *module.named_buffers()])
