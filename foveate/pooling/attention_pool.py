"""Attention pooling: a learned token asks every spatial position, and the answer is the pooled vector.

Touvron, Cord, El-Nouby, Bojanowski, Joulin, Synnaeve, Verbeek, Jégou: Augmenting Convolutional networks with
attention-based aggregation, 2021, https://arxiv.org/abs/2112.13692

    x = the feature map's N positions, vectors of C channels; t = the learned token; LN = layer norm, one for each use
    u   = LN([t; x])                                               with ``classes``: u = LN(x), without the token
    t'  = t  + g1 * Wo softmax(q(LN t) . k(u) / sqrt(d)) v(u)      for each head, d = C / heads
    t'' = t' + g2 * W2 gelu(W1 LN(t'))                             W1: C -> 3C
    out = LN(t'')

With ``classes`` there is a token for each class, and all share q, k, v, Wo, W1, W2, g1, g2 and the norms.
As in the authors' code: biases, the norms' epsilon 1e-6, no position encoding, so the positions may be shuffled.
Their code for a token per class works with 1000 classes only, and its trunk with square images only; here any number of
classes and any height and width do. The last norm stands in the authors' network, before its classifier. Networks like
ResNet have none there, so here it is the pool's; ``norm=False`` is for a network with one of its own.

Without gradients, and where it saves products, k and v are not computed at each position: <q, Wk u_j> = <Wk^T q, u_j>,
and sum_j a_j (Wv u_j + b) = Wv (sum_j a_j u_j) + b. k's bias adds the same number everywhere: the softmax takes it out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.kernels.dispatch import Built, enabled, into_a_graph, modification, wants_gradients
from foveate.kernels.softmax_attention import flatten_positions, softmax_attention, softmax_map

__all__ = ["AttentionPool"]

_EPS = 1e-6
_STD = 0.02  # of the token and the weights at the start, as in the authors' code


class AttentionPool(nn.Module):
    """Attention pooling, by one token or by a token per class.

    Args:
        channels: C, the channels of x.
        classes: K, for a token per class; without a value there is one token.
        heads: number of heads, which divides ``channels``. The paper: 1.
        mlp_ratio: width of the hidden layer W1, in multiples of C. The paper: 3.
        init_values: g1 and g2 at the start. The authors: 1e-4 for their S60, 1e-6 for the larger networks.
        norm: whether the last layer norm is part of the pool.

    Shape:
        x: (B, C, h, w) -> (B, C); with ``classes`` (B, K, C). The map: (B, heads, h, w), the weights of the positions
        without the token's own weight, which is 1 minus their sum; with ``classes`` (B, K, h, w), which sums to 1, or
        (B, K, heads, h, w) with several heads.

    Raises:
        FoveateError: ``heads`` does not divide ``channels``, ``classes`` is less than 1, or ``mlp_ratio`` leaves no
            hidden layer.
    """

    def __init__(
        self,
        channels: int,
        *,
        classes: int | None = None,
        heads: int = 1,
        mlp_ratio: float = 3.0,
        init_values: float = 1e-4,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if classes is not None and classes < 1:
            raise FoveateError(f"attention_pool(classes={classes}): at least 1; without a value there is one token")
        if heads < 1 or channels % heads:
            fitting = ", ".join(str(n) for n in (1, 2, 4, 8, 16) if channels % n == 0)
            raise FoveateError(
                f"attention_pool(heads={heads}) does not fit {channels} channels: it divides them, as {fitting}"
            )
        hidden = int(channels * mlp_ratio)
        if hidden < 1:
            raise FoveateError(f"attention_pool(mlp_ratio={mlp_ratio}) leaves no hidden layer; the paper takes 3")
        self.classes, self.heads = classes, heads
        self.map_axes = "b k h w" if classes is None else "b n h w" if heads == 1 else "b n k h w"
        # One token has a single axis, and is therefore spared from weight decay like the norms; the authors do so.
        self.token = nn.Parameter(torch.empty(channels) if classes is None else torch.empty(classes, channels))
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=_EPS), nn.LayerNorm(channels, eps=_EPS)
        self.query, self.key = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.gamma_1 = nn.Parameter(torch.full((channels,), float(init_values)))
        self.gamma_2 = nn.Parameter(torch.full((channels,), float(init_values)))
        self.norm = nn.LayerNorm(channels, eps=_EPS) if norm else nn.Identity()
        nn.init.trunc_normal_(self.token, std=_STD)
        for linear in (self.query, self.key, self.value, self.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=_STD)
            nn.init.zeros_(linear.bias)

    def attend(self, x: Tensor) -> Tensor:
        """The weights of the positions: (B, heads, h, w), (B, K, h, w), or (B, K, heads, h, w)."""
        u, q = self._ask(x)
        k = self._split(self.key(u))
        q = q.expand(x.shape[0], -1, -1, -1)
        pairs = torch.unflatten(softmax_map(q.flatten(0, 1), k.flatten(0, 1), q.shape[3] ** -0.5), 0, k.shape[:2])
        if self.classes is None:
            return torch.unflatten(pairs[:, :, 0, 1:], 2, x.shape[2:])
        maps = torch.unflatten(pairs.transpose(1, 2), 3, x.shape[2:])
        return maps.squeeze(2) if self.heads == 1 else maps

    def forward(self, x: Tensor) -> Tensor:
        """The pooled vector t'' after the last norm, (B, C); with ``classes`` one for each class, (B, K, C)."""
        u, q = self._ask(x)
        if not torch._jit_internal.is_scripting():
            fused = self._looks_first(x)
            if fused:
                return self._finish(self._look(u, q))
        q = q.expand(x.shape[0], -1, -1, -1)
        return self._finish(F.scaled_dot_product_attention(q, self._split(self.key(u)), self._split(self.value(u))))

    def _finish(self, answers: Tensor) -> Tensor:
        """From what the tokens get, (B, heads, 1 or K, d), to the pooled vectors."""
        t: Tensor = self.token + self.gamma_1 * self.proj(answers.transpose(1, 2).flatten(2))
        t = t + self.gamma_2 * self.fc2(F.gelu(self.fc1(self.norm2(t))))
        t = self.norm(t)
        return t.squeeze(1) if self.classes is None else t

    def _looks_first(self, x: Tensor) -> bool:
        """Whether the positions are attended before k and v are made of them, and not after."""
        traced = not isinstance(x, Tensor) or into_a_graph()
        if traced or not enabled() or wants_gradients(self, x):
            return False
        tokens, keys = self.token.numel() // x.shape[1], x.shape[2] * x.shape[3] + (self.classes is None)
        pairs = tokens * keys / x.shape[1]
        # MACs in units of 2 C^2: Wk and Wv at each token, and pairs C wide for each head; or Wk and Wv at each key.
        if tokens + self.heads * pairs >= keys + pairs:
            return False
        return not modification(self, _KEY_AND_VALUE)

    def _look(self, u: Tensor, q: Tensor) -> Tensor:
        """What the tokens get, (B, heads, 1 or K, d), with Wk and Wv moved out of the sums over positions."""
        by_head = (self.heads, -1)
        asked = (q @ torch.unflatten(self.key.weight, 0, by_head)).flatten(1, 2)  # (1, heads * K, C)
        seen = softmax_attention(asked.expand(u.shape[0], -1, -1), u, u, q.shape[3] ** -0.5)
        seen = torch.unflatten(seen, 1, q.shape[1:3])
        out = seen @ torch.unflatten(self.value.weight, 0, by_head).transpose(1, 2)
        return out if self.value.bias is None else out + torch.unflatten(self.value.bias, 0, by_head).unsqueeze(1)

    def _ask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u, (B, N or 1 + N, C), and the tokens' queries, the same for each image: (1, heads, 1 or K, d)."""
        token = self.norm1(self.token).reshape(1, -1, x.shape[1])
        u = self.norm1(flatten_positions(x))
        if self.classes is None:
            u = torch.cat([token.expand(x.shape[0], -1, -1), u], dim=1)
        return u, self._split(self.query(token))

    def _split(self, rows: Tensor) -> Tensor:
        """(B, n, C) -> (B, heads, n, d)."""
        return torch.unflatten(rows, 2, (self.heads, -1)).transpose(1, 2)


_KEY_AND_VALUE = Built({"key": nn.Linear, "value": nn.Linear}, {})
