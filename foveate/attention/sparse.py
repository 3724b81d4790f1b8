"""Strided sparse attention on an image: each position sees the last l positions and every l-th position before it.

Child, Gray, Radford, Sutskever: Generating Long Sequences with Sparse Transformers, 2019,
https://arxiv.org/abs/1904.10509

    positions in raster order, l = the image's width by default
    local(i)   = {j : 0 <= i - j < l}                    the positions before it, one row's worth
    strided(i) = {j <= i : (i - j) mod l = 0}            its column, above it
    A(x, S)_i  = sum_{j in S(i)} softmax_j(q_i . k_j / sqrt(d)) v_j          for each head
    steps:     y = x + W1 A(x, local)        out = y + W2 A(y, strided)
    heads:     out = x + W [A(x, local) on half of the heads; A(x, strided) on the other half]

Local, then strided, reaches every earlier position. Without ``causal`` both look forwards as well.
As in the authors' code: the last l positions are l with the own one. The paper's formula has one more, i - l, which
the strided pattern has too (``window`` = l + 1).
Unlike the authors' code: only the attention, without the transformer's layer norm and feed-forward layer; and any
height and width, with no mask of all pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.kernels.dispatch import into_a_graph, is_exporting
from foveate.kernels.softmax_attention import channels_last, flatten_positions
from foveate.kernels.sparse import local_attention, local_pattern, pattern_map, strided_attention, strided_pattern

__all__ = ["StridedSparseAttention"]

torch.fx.wrap("local_attention")  # one step of torch.fx's trace, for it asks for shapes
torch.fx.wrap("strided_attention")  # one step of torch.fx's trace, for it asks for shapes

ARRANGEMENTS = ("steps", "heads")


class StridedSparseAttention(nn.Module):
    """Strided sparse attention.

    Args:
        channels: m, the channels of x.
        heads: number of heads, which divides ``channels``; even for ``heads`` below. The paper's CIFAR-10 model: 2.
        stride: l; without a value the width of x.
        window: positions that the local pattern sees, its own included; without a value l.
        causal: a position sees only those before it, as in the paper. False: in both directions.
        arrangement: ``steps``: local, then strided, each with weights of its own; ``heads``: one step, half of the
            heads local and half strided.

    Shape:
        x: (B, m, h, w) -> (B, m, h, w). The map: (B, k, N, h, w), N = h*w positions in raster order that look; k is the
        local heads, then the strided heads; each sums to 1 over h, w. Only ``attend`` builds it.

    Raises:
        FoveateError: ``heads`` does not divide ``channels`` or is odd where it must be even, ``stride`` or ``window``
            is less than 1, or ``arrangement`` is none of those listed.
    """

    map_axes = "b k q h w"

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 2,
        stride: int | None = None,
        window: int | None = None,
        causal: bool = True,
        arrangement: str = "steps",
    ) -> None:
        super().__init__()
        if arrangement not in ARRANGEMENTS:
            raise FoveateError(f"sparse(arrangement={arrangement!r}) does not exist; {near(arrangement, ARRANGEMENTS)}")
        halves = 2 if arrangement == "heads" else 1
        if heads < 1 or channels % heads or heads % halves:
            fitting = ", ".join(str(n) for n in (1, 2, 4, 8, 16) if channels % n == 0 and n % halves == 0) or "none"
            raise FoveateError(
                f"sparse(heads={heads}, arrangement={arrangement!r}) does not fit {channels} channels: "
                f"take heads from {fitting}"
            )
        for option, value in (("stride", stride), ("window", window)):
            if value is not None and value < 1:
                raise FoveateError(f"sparse({option}={value}): it is at least 1; without a value it is the width of x")
        self.heads, self.stride, self.window = heads, stride, window
        self.causal, self.arrangement = causal, arrangement
        steps = 2 if arrangement == "steps" else 1
        self.qkv = nn.ModuleList(nn.Conv2d(channels, 3 * channels, 1, bias=False) for _ in range(steps))
        self.out = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(steps))

    def attend(self, x: Tensor) -> Tensor:
        """The maps of the local heads and of the strided heads, (B, k, N, h, w): N^2 numbers for each head."""
        stride = x.shape[3] if self.stride is None else self.stride
        window = stride if self.window is None else self.window
        n = x.shape[2] * x.shape[3]
        local, strided = local_pattern(n, window, self.causal), strided_pattern(n, stride, self.causal)
        q, k, v = self._heads(x, 0)
        if self.arrangement == "heads":
            half = self.heads // 2
            maps = [pattern_map(q[:, :half], k[:, :half], local), pattern_map(q[:, half:], k[:, half:], strided)]
        else:
            between = x + self._merge(self._local(q, k, v, x), x, 0)
            second_q, second_k, _ = self._heads(between, 1)
            maps = [pattern_map(q, k, local), pattern_map(second_q, second_k, strided)]
        return torch.unflatten(torch.cat(maps, dim=1), 3, x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """The attention added to x, in one step or two."""
        self._refuse_symbols(x)
        if not isinstance(x, Tensor) or into_a_graph():
            return self._step(x)
        # With the channels last a position's channels are a row, so that nothing between the steps is transposed.
        out = self._step(channels_last(x))
        return out.contiguous() if x.is_contiguous() else out

    def _step(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x, 0)
        if self.arrangement == "heads":
            (q1, q2), (k1, k2), (v1, v2) = (rows.chunk(2, dim=1) for rows in (q, k, v))
            both = torch.cat([self._local(q1, k1, v1, x), self._strided(q2, k2, v2, x)], dim=1)
            return x + self._merge(both, x, 0)
        x = x + self._merge(self._local(q, k, v, x), x, 0)
        q, k, v = self._heads(x, 1)
        return x + self._merge(self._strided(q, k, v, x), x, 1)

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script asks for.

        Raises:
            FoveateError: always; its language has no word for this module's steps.
        """
        raise FoveateError(
            "sparse cannot be compiled by torch.jit.script: use torch.jit.trace, torch.compile or torch.export"
        )

    def _refuse_symbols(self, x: Tensor) -> None:
        """A graph in which n / l is rounded up would hold for the height and width of the example only."""
        if not is_exporting() or (self.stride is None and self.window is None):
            return
        if any(type(side) is not int for side in x.shape[2:]):
            raise FoveateError(
                f"sparse(stride={self.stride}, window={self.window}) can be exported for one height and width only: "
                "export it without dynamic height and width, or leave stride and window out, which are then x's width"
            )
        for side in x.shape[2:]:  # a strict export hides the symbols: counting fixes them, and torch refuses
            list(range(side))

    # By default a block is a row of x and a column is one of its columns, which needs no question about their sizes.

    def _local(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        window = self.stride if self.window is None else self.window
        if window is None:
            return local_attention(q, k, v, x.shape[3], self.causal, x.shape[2])
        return local_attention(q, k, v, window, self.causal)

    def _strided(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        if self.stride is None:
            return strided_attention(q, k, v, x.shape[3], self.causal, x.shape[2])
        return strided_attention(q, k, v, self.stride, self.causal)

    def _heads(self, x: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each (B, heads, N, d)."""
        q, k, v = flatten_positions(self.qkv[step](x)).chunk(3, dim=2)
        by_head = (self.heads, -1)
        q, k, v = (torch.unflatten(t, 2, by_head) for t in (q, k, v))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _merge(self, rows: Tensor, x: Tensor, step: int) -> Tensor:
        """(B, heads, N, d) -> (B, m, h, w), through W."""
        y = rows.transpose(1, 2).flatten(2).transpose(1, 2)
        out: Tensor = self.out[step](torch.unflatten(y, 2, x.shape[2:]))
        return out
