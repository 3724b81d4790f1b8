"""Non-local: every position becomes a mean over all positions, weighted by how alike they are.

Wang, Girshick, Gupta, He: Non-local Neural Networks, CVPR 2018, https://arxiv.org/abs/1711.07971

    y_i = sum_j f(x_i, x_j) g(x_j) / C(x)        out = x + BN(W y)        theta, phi, g, W: 1x1, m/2 channels inside

    embedded_gaussian:  softmax_j(theta_i . phi_j)          gaussian:  softmax_j(x_i . x_j)
    dot:                theta_i . phi_j / N                 concat:    relu(w_f . [theta_i, phi_j]) / N

The last batch norm starts with gamma 0, so the block starts as the identity.
As in the authors' code: biases. Unlike it, as in the paper: the scores are not divided by sqrt(m/2) (``scale=True``),
and sub-sampling pools after phi and g; the code pools before them.
No form builds the N x N map in ``forward``: the softmax forms are one fused attention, dot is theta (phi^T g), and
concat is two running sums over sorted scores. All four are exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError, near
from foveate.kernels import few_positions
from foveate.kernels.dispatch import Built
from foveate.kernels.relu_pairs import relu_pairs
from foveate.kernels.softmax_attention import channels_last, flatten_positions, softmax_attention, softmax_map

__all__ = ["NonLocal"]

torch.fx.wrap("softmax_attention")  # one step of torch.fx's trace, for it asks for shapes

FORMS = ("embedded_gaussian", "gaussian", "dot", "concat")
SUB_SAMPLES = ("none", "after", "before")


class NonLocal(nn.Module):
    """Non-local block.

    Args:
        channels: m, the channels of x.
        form: f, one of ``embedded_gaussian`` (the paper's default), ``gaussian``, ``dot``, ``concat``.
        sub_sample: a 2x2 max-pool ``after`` phi and g (the paper), ``before`` them (the authors' code), or ``none``.
            An odd last row or column is pooled alone.
        scale: divide the scores of a softmax form by the square root of theta's channels, as in the authors' code.
        bn: a batch norm after W that starts with gamma 0. Without it W starts at 0.
        reduction: the channels inside are max(1, m // reduction). The paper: 2.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: (B, N, h, w): for each of the N = h*w positions, in raster order, its
        weights over all positions; with sub-sampling over those that are left. Only ``attend`` builds it.

    Raises:
        FoveateError: ``form`` or ``sub_sample`` is none of those listed, ``scale`` for a form without softmax, or
            ``reduction`` is less than 1.
    """

    map_axes = "b q h w"

    def __init__(
        self,
        channels: int,
        *,
        form: str = "embedded_gaussian",
        sub_sample: str = "none",
        scale: bool = False,
        bn: bool = True,
        reduction: int = 2,
    ) -> None:
        super().__init__()
        for option, value, allowed in (("form", form, FORMS), ("sub_sample", sub_sample, SUB_SAMPLES)):
            if value not in allowed:
                raise FoveateError(f"non_local({option}={value!r}) does not exist; {near(value, allowed)}")
        if scale and form in ("dot", "concat"):
            raise FoveateError(f"non_local(form={form!r}, scale=True): this form divides by N; scale is for softmax")
        if reduction < 1:
            raise FoveateError(f"non_local(reduction={reduction}): the reduction is at least 1; the paper takes 2")
        self.form, self.sub_sample, self.reduction = form, sub_sample, reduction
        inside = max(1, channels // reduction)
        self.theta = nn.Identity() if form == "gaussian" else nn.Conv2d(channels, inside, 1)
        self.phi = nn.Identity() if form == "gaussian" else nn.Conv2d(channels, inside, 1)
        self.g = nn.Conv2d(channels, inside, 1)
        if form == "concat":
            self.w_f = nn.Linear(2 * inside, 1, bias=False)
        self.scale = 1 / math.sqrt(channels if form == "gaussian" else inside) if scale else 1.0
        self.out = nn.Conv2d(inside, channels, 1)
        self.bn = nn.BatchNorm2d(channels) if bn else nn.Identity()
        last = self.bn if isinstance(self.bn, nn.BatchNorm2d) else self.out
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)

    def attend(self, x: Tensor) -> Tensor:
        """The map f / C of all pairs, (B, N, h, w): N^2 numbers for each image."""
        theta, phi, _ = self._project(x)
        queries, keys = flatten_positions(theta), flatten_positions(phi)
        if self.form == "dot":
            pairs = queries @ keys.transpose(1, 2) / keys.shape[1]
        elif self.form == "concat":
            a, b = self._halves(queries, keys)
            pairs = (a.unsqueeze(2) + b.unsqueeze(1)).relu() / keys.shape[1]
        else:
            pairs = softmax_map(queries, keys, self.scale)
        return torch.unflatten(pairs, 2, phi.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """The output, x + BN(W y)."""
        source = x
        if not torch._jit_internal.is_scripting():
            if self._takes_rows(x):
                return self._by_rows(x)
            source = channels_last(x)
        theta, phi, g = self._project(source)
        queries, keys, values = flatten_positions(theta), flatten_positions(phi), flatten_positions(g)
        if self.form == "dot":
            y = queries @ (keys.transpose(1, 2) @ (values / keys.shape[1]))
        elif hasattr(self, "w_f"):  # the form concat, in words that torch.jit.script evaluates at once
            y = relu_pairs(*self._halves(queries, keys), values / keys.shape[1])
        else:
            y = softmax_attention(queries, keys, values, self.scale)
        change: Tensor = self.bn(self.out(torch.unflatten(y.transpose(1, 2), 2, x.shape[2:])))
        return x + change

    def _takes_rows(self, x: Tensor) -> bool:
        plain = self.form == "embedded_gaussian" and self.sub_sample == "none"
        return plain and few_positions.takes_rows(self, x, _BUILT)

    def _by_rows(self, x: Tensor) -> Tensor:
        rows = few_positions.rows_of(x)
        queries, keys, values = (few_positions.project(conv, rows) for conv in (self.theta, self.phi, self.g))
        y = few_positions.attention(queries, keys, values, self.scale)
        change: Tensor = self.bn(few_positions.as_map(few_positions.project(self.out, y), x))
        return x + change

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        source = _pool(x) if self.sub_sample == "before" else x
        phi, g = self.phi(source), self.g(source)
        if self.sub_sample == "after":
            phi, g = _pool(phi), _pool(g)
        return self.theta(x), phi, g

    def _halves(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """w_f . [theta_i, phi_j] is a number of i plus a number of j: (B, N) and (B, N)."""
        of_query, of_key = self.w_f.weight.chunk(2, dim=1)
        return F.linear(queries, of_query).squeeze(2), F.linear(keys, of_key).squeeze(2)

    def paper_cost(self, channels: int, height: int, width: int) -> tuple[int, int]:
        """Parameters and MACs as the ULSAM paper's table counts them, without the pairs.

        Four layers of m^2 / r each, with r = 2 2 m^2 and 2 m^2 hw; two in the form ``gaussian``.
        """
        layers = 2 if self.form == "gaussian" else 4
        parameters = layers * channels * max(1, channels // self.reduction)
        return parameters, parameters * height * width


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


_BUILT = Built(dict.fromkeys(("theta", "phi", "g", "out"), nn.Conv2d), {})
