"""timm's ECA and circular ECA, whose forward pass on a CPU is one call of a function in C where that is the same.

Wang, Wu, Zhu, Li, Zuo, Hu: ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, CVPR 2020,
https://arxiv.org/abs/1910.03151

    s = sigmoid(conv1d(mean_hw(x))), along the channels        out = s * x

The classes have timm's names, constructors, children and state, and are timm's classes: what is not inference on a CPU
as timm built the layer is timm's own forward pass. So is everything that torch follows (compilation, export, a trace,
counting, profiling).
"""

from __future__ import annotations

import functools
from typing import Any

import timm.layers
from timm.layers import create_act_layer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: F401 - torch.jit.script looks here for the names in timm's source

from foveate.attention._gates import use_fused_path
from foveate.kernels.dispatch import Built
from foveate.kernels.gates import op as gates_op

__all__ = ["CecaModule", "EcaModule"]

_SIGMOID = type(create_act_layer("sigmoid"))
_BUILT = Built({"conv": nn.Conv1d, "gate": _SIGMOID}, {})


class EcaModule(timm.layers.EcaModule):  # type: ignore[misc, no-any-unimported]  # timm is not annotated
    """``timm.layers.EcaModule``.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w).
    """

    @functools.wraps(timm.layers.EcaModule.forward)  # whose source torch.jit.script compiles
    def forward(self, x: Tensor) -> Tensor:
        out = _infer(self, x, self.conv2 is None, circular=False)
        if out is None:
            out = super().forward(x)
        return out


class CecaModule(timm.layers.CecaModule):  # type: ignore[misc, no-any-unimported]  # likewise
    """``timm.layers.CecaModule``: the first channel is next to the last one.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w).
    """

    @functools.wraps(timm.layers.CecaModule.forward)
    def forward(self, x: Tensor) -> Tensor:
        out = _infer(self, x, True, circular=True)
        if out is None:
            out = super().forward(x)
        return out


def _infer(module: Any, x: Tensor, is_one_layer: bool, circular: bool) -> Tensor | None:
    """The output in one call; None where timm's own forward pass is wanted."""
    if module.training or type(x) is not Tensor or not is_one_layer:
        return None
    if not use_fused_path(module, x, _BUILT):
        return None
    conv = module.conv
    weight, bias = conv._parameters.get("weight"), conv._parameters.get("bias")
    if weight is None or (conv.stride, conv.dilation, conv.padding_mode) != ((1,), (1,), "zeros"):
        return None
    beyond = weight.shape[-1] // 2
    if (module.padding if circular else beyond) != beyond or conv.padding != (0 if circular else beyond,):
        return None
    return gates_op.gate_along_channels(x, weight, bias, circular=circular)
