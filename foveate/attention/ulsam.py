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

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.kernels.dispatch import PLAIN, Built, Choice, choose, wants_gradients
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
    kernels: then none is used. Where one is used it reads the parameters as they are at that moment.
    """

    map_axes = "b g h w"
    kernel_family = "ulsam"

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
        register_hook: Callable[[Callable[..., None]], object] = self.register_load_state_dict_pre_hook
        register_hook(_join_subspaces)

    def attend(self, x: Tensor) -> Tensor:
        """The maps A, (B, g, h, w)."""
        hidden = F.relu(self.bn_dws(self.conv_dws(x)))
        hidden = F.max_pool2d(hidden, kernel_size=3, stride=1, padding=1)
        return spatial_softmax(F.relu(self.bn_point(self.conv_point(hidden))))

    def forward(self, x: Tensor) -> Tensor:
        """x + A * x, subspace by subspace."""
        if not torch._jit_internal.is_scripting():
            choice, vectors = self._choose(x)
            if choice.backend:
                return self._fused(x, vectors)
        return reweight(x, self.attend(x))

    def _fused(self, x: Tensor, vectors: list[Any]) -> Tensor:
        """``forward`` by the backend."""
        children: Any = self._modules  # an attribute that is a child is a function call
        norm, point_norm = children["bn_dws"], children["bn_point"]
        if not (norm.training or point_norm.training or wants_gradients(self, x)):
            return ulsam_op.evaluate(x, vectors, self.groups, norm.eps, point_norm.eps)
        return self._train(x, vectors, (norm, point_norm))

    def _choose(self, x: Tensor) -> tuple[Choice, list[object]]:
        """The backend for x or why there is none; and what ``ulsam_op.fold`` takes, as it is now: nothing is kept."""
        choice = choose(x, "ulsam", self, _BUILT)
        if not choice.backend:
            return choice, []
        if x.shape[1] != self.channels:  # the passes read as many, wherever the parameters end
            return _CHANNELS, []
        children: Any = self._modules
        vectors: list[Any] = []
        for conv, norm in ((children["conv_dws"], children["bn_dws"]), (children["conv_point"], children["bn_point"])):
            if conv.stride != (1, 1) or conv.padding not in _NO_PADDING:
                return _STRIDE, []
            if norm.training and not (norm.track_running_stats and norm.momentum and x.numel() > self.channels):
                return _STATISTICS, []
            # By name: pruning and parametrization put a parameter behind the others.
            own, state, running = conv._parameters, norm._parameters, norm._buffers
            vectors += (own.get("weight"), own.get("bias"), state.get("weight"), state.get("bias"))
            vectors += (running.get("running_mean"), running.get("running_var"))
        on_cpu, channels = x.is_cpu, self.channels
        for index, vector in enumerate(vectors):
            if vector is None or vector.numel() != (channels if index < 7 else self.groups):
                return Choice("", f"{_VECTORS[index]!r} is missing or has another size"), []
            if type(vector) not in PLAIN or vector.is_cpu is not on_cpu or not (on_cpu or vector.device == x.device):
                return Choice("", f"{_VECTORS[index]!r} is not a plain tensor on the device of the input"), []
        return choice, vectors

    def _train(self, x: Tensor, vectors: list[Any], norms: tuple[Any, Any]) -> Tensor:
        """Forward with gradients; each batch norm by its own mode, as in ``attend``."""
        empty = x.new_empty(0, dtype=torch.float32)
        known = (vectors[4:6], vectors[10:12])
        running = [t for norm, pair in zip(norms, known, strict=True) for t in ([empty] * 2 if norm.training else pair)]
        parameters = vectors[:4] + vectors[6:10]
        out, observed = ulsam_op.train(x, parameters, running, norms[0].eps, norms[1].eps)
        with torch.no_grad():
            for norm in (norm for norm in norms if norm.training):
                count = norm.num_features
                mean, var, observed = torch.split(observed, [count, count, observed.numel() - 2 * count])
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.add_(1)
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
                norm.running_var.lerp_(var.to(norm.running_var.dtype), norm.momentum)
        return out

    def extra_repr(self) -> str:
        """The options, as they are written in a plan."""
        return f"{self.channels}, groups={self.groups}"

    @staticmethod
    def paper_cost(channels: int, height: int, width: int) -> tuple[int, int]:
        """Parameters and MACs as the paper counts them: 2m and 2mhw (no biases, no batch norms)."""
        return 2 * channels, 2 * channels * height * width


_BUILT = Built(
    {"conv_dws": nn.Conv2d, "bn_dws": nn.BatchNorm2d, "conv_point": nn.Conv2d, "bn_point": nn.BatchNorm2d},
    {"attend": ULSAM.attend},
)
_AFFINE, _KEPT = ("weight", "bias"), ("running_mean", "running_var")
_VECTORS = [
    f"{module}.{name}"
    for conv, norm in (("conv_dws", "bn_dws"), ("conv_point", "bn_point"))
    for module, names in ((conv, _AFFINE), (norm, _AFFINE + _KEPT))
    for name in names
]
_NO_PADDING = ((0, 0), "same", "valid")
_CHANNELS = Choice("", "the input has another number of channels than the module")
_STRIDE = Choice("", "a convolution has another stride or padding")
_STATISTICS = Choice("", "a batch norm keeps its statistics in another way, or gets one value for each channel")


def _join_subspaces(module: ULSAM, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Rewrite the authors' keys, one set for each subspace, into ours: concatenated along the first axis."""
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
