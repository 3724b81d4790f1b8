"""Learn to pay attention: the pooled vector looks at several feature maps, and only what it sees is classified.

Jetley, Lord, Lee, Torr: Learn to Pay Attention, ICLR 2018, https://arxiv.org/abs/1804.02391

    l' = V l                            at each position i of a feature map; V is left out where the widths are equal
    c_i = <l'_i, g>                     ``score="dot"``
    c_i = <u, l'_i + g>                 ``score="parameterised"``
    a = softmax over the positions of c
    g_a = sum_i a_i l'_i                one vector for each feature map, g_a1, g_a2, ...
    scores = W [g_a1, g_a2, ...] + b    ``join="concat"``
    probabilities = mean over the maps of softmax(W_s g_as + b_s)      ``join="separate"``

g is the pooled vector that the network's own classifier would get; it is asked, and never classified.

<u, l'_i + g> = <u, l'_i> + <u, g>, and the second term is the same at each position: the softmax takes it out.
So the map of ``parameterised`` does not depend on g, and the layers that make only g get a gradient of 0.

V is never run at each position, for it need not: <V l_i, g> = <l_i, V^T g>, and sum_i a_i V l_i = V sum_i a_i l_i.

As in the authors' code, where it maps l: l' is also what is summed. Unlike it, unless an option says so: mostly it maps
g to the width of l (``project="pooled"``); it adds the scores of separate classifiers (``combine="product"``), and has
batch norm, ReLU and dropout before linear maps (``regularise``). Its u has a bias, which the softmax takes out, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.kernels.softmax_attention import flatten_positions, softmax_attention

__all__ = ["LearnToPayAttention"]

torch.fx.wrap("softmax_attention")  # one step of torch.fx's trace, for it asks for shapes

SCORES = ("dot", "parameterised")
JOINS = ("concat", "separate")
PROJECTS = ("features", "pooled")
COMBINES = ("mean", "product")


def _regularised(width: int, active: bool) -> list[nn.Module]:
    return [nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5)] if active else []


class LearnToPayAttention(nn.Module):
    """A classifier that sees nothing but attended feature maps.

    Args:
        channels: C_l, the channels of each feature map, the coarsest last.
        features: D, the width of the pooled vector.
        classes: K.
        score: how a position is compared with the pooled vector: ``dot`` or ``parameterised``. Both are the paper's.
        join: one classifier of the joined vectors (``concat``) or one for each (``separate``). Both are the paper's.
        project: where C_l is not D, the ``features`` are mapped to D (the paper), or the ``pooled`` vector to C_l (the
            authors' code for its VGG network).
        combine: with ``separate``, the ``mean`` of the probabilities (the paper) or their normalised ``product``, the
            softmax of the summed scores (the authors' code).
        regularise: batch norm, ReLU and dropout of one half before each linear map of a vector, as in the authors'
            code. The paper names none.

    Shape:
        maps: (B, C_l, h_l, w_l) each; pooled: (B, D) -> (B, K). The maps of attention: (B, h_l, w_l) each.

    Raises:
        FoveateError: an option is none of those listed, or a size is less than 1; in ``forward``: another number of
            feature maps.
    """

    map_axes = "b h w"
    levels = 3

    def __init__(
        self,
        channels: Sequence[int],
        features: int,
        classes: int,
        *,
        score: str = "dot",
        join: str = "concat",
        project: str = "features",
        combine: str = "mean",
        regularise: bool = False,
    ) -> None:
        super().__init__()
        given = (("score", score, SCORES), ("join", join, JOINS), ("project", project, PROJECTS))
        for option, value, allowed in (*given, ("combine", combine, COMBINES)):
            if value not in allowed:
                raise FoveateError(f"ltpa({option}={value!r}) does not exist; {near(value, allowed)}")
        if not channels or min(*channels, features, classes) < 1:
            raise FoveateError(
                f"ltpa reads at least one feature map, and no size is below 1: channels={tuple(channels)}, "
                f"features={features}, classes={classes}"
            )
        self.score, self.join, self.project, self.combine = score, join, project, combine
        widths = [features if project == "features" else width for width in channels]
        self.feature_maps = nn.ModuleList(
            nn.Linear(width, features, bias=False) if width != features and project == "features" else nn.Identity()
            for width in channels
        )
        self.pooled_maps = nn.ModuleList(
            nn.Sequential(*_regularised(features, regularise), nn.Linear(features, width, bias=False))
            if width != features and project == "pooled"
            else nn.Identity()
            for width in channels
        )
        self.compatibility = nn.ModuleList(
            nn.Linear(width, 1, bias=False) for width in widths if score == "parameterised"
        )
        self.ready = nn.ModuleList(nn.Sequential(*_regularised(width, regularise)) for width in widths)
        inputs = [sum(widths)] if join == "concat" else widths
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for width in inputs)

    def _asks(self, maps: Sequence[Tensor], pooled: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """For each feature map: itself, the factors of its positions (B, C_l), what is added to each (B, 1)."""
        if len(maps) != len(self.feature_maps):
            raise FoveateError(f"ltpa was built for {len(self.feature_maps)} feature maps and got {len(maps)}")
        for level, (local, feature_map, pooled_map) in enumerate(
            zip(maps, self.feature_maps, self.pooled_maps, strict=True)
        ):
            query = pooled_map(pooled)
            u: Any = self.compatibility[level] if self.score == "parameterised" else None
            # One vector for each image, or one for all.
            asked: Tensor = query if u is None else u.weight
            asked = asked @ feature_map.weight if isinstance(feature_map, nn.Linear) else asked
            yield local, asked.expand(local.shape[0], -1), None if u is None else u(query)

    def attend(self, maps: Sequence[Tensor], pooled: Tensor) -> tuple[Tensor, ...]:
        """a for each feature map, (B, h_l, w_l); each sums to 1."""
        return tuple(_attention(*asks) for asks in self._asks(maps, pooled))

    def _look(self, maps: Sequence[Tensor], pooled: Tensor) -> Iterator[Tensor]:
        """g_a for each feature map, (B, width)."""
        for feature_map, (local, asked, added) in zip(self.feature_maps, self._asks(maps, pooled), strict=True):
            if added is None:
                rows = flatten_positions(local)
                seen = softmax_attention(asked.unsqueeze(1), rows, rows, 1.0).squeeze(1)
            else:  # the sum is kept for its gradient of 0: a parameter without any is an error in several processes
                seen = torch.einsum("bchw,bhw->bc", local, _attention(local, asked, added))
            yield feature_map(seen)

    def forward(self, maps: Sequence[Tensor], pooled: Tensor) -> Tensor:
        """Scores (B, K)."""
        vectors = [ready(vector) for ready, vector in zip(self.ready, self._look(maps, pooled), strict=True)]
        if self.join == "concat":
            scores: Tensor = self.classifiers[0](torch.cat(vectors, 1))
            return scores
        each = torch.stack([classify(vector) for classify, vector in zip(self.classifiers, vectors, strict=True)])
        if self.combine == "product":
            return each.sum(0)
        # The log of the mean probability, so that softmax gives that mean back.
        return each.log_softmax(2).logsumexp(0) - math.log(len(each))


def _attention(local: Tensor, asked: Tensor, added: Tensor | None) -> Tensor:
    """Softmax over the positions of the products with one vector for each image, (B, h, w)."""
    scores = torch.einsum("bchw,bc->bhw", local, asked)
    scores = scores if added is None else scores + added[:, :, None]
    return scores.flatten(1).softmax(1).reshape(scores.shape)
