"""Where the class token of a vision transformer looks: the weights that it gives the patches.

Of one block each head's own weights, as Caron et al. (DINO, ICCV 2021, https://arxiv.org/abs/2104.14294) show them, or
their mean; or the attention rollout over all blocks (Abnar, Zuidema: Quantifying Attention Flow in Transformers,
ACL 2020, https://arxiv.org/abs/2005.00928):

    A_l = (mean over heads of W_l + I) / 2        rollout = A_L ... A_1

The map is the row of the class token, of the patches alone: what it gives itself and registers is not in it, so that a
map sums to less than 1. A network whose classifier reads the mean of the patches has no such row; its map is the mean
of the rows of the patches. A network with an attention pool has the row of the pool's own query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.explanations.result import Map
from foveate.explanations.transformers.networks import Transformer, grid_of
from foveate.explanations.transformers.weights import attention_weights
from foveate.preserve import preserve_state

__all__ = ["TokenMaps", "token_maps"]

MEAN = "mean"
_PATCHES = "mean over patches"


@dataclass(frozen=True)
class TokenMaps:
    """Which maps of a vision transformer are wanted.

    Attributes:
        layer: a block, or its attention, by dotted name; without it the last one. Of the rollout the last one of it.
        head: the number of a head, counted from 1, or "mean"; without it each head.
        rollout: through all blocks up to ``layer``.
    """

    layer: str | None = None
    head: int | str | None = None
    rollout: bool = False

    @property
    def given(self) -> bool:
        """Whether anything but the usual is wanted."""
        return self.layer is not None or self.head is not None or self.rollout

    def check(self, network: Transformer) -> tuple[str, ...]:
        """The attention modules to be read.

        Raises:
            FoveateError: there is no such layer, or the options do not go together.
        """
        if self.rollout and self.head is not None:
            raise FoveateError("head= and rollout= do not go together: the rollout takes the mean of the heads")
        if self.head is not None and self.head != MEAN and (type(self.head) is not int or self.head < 1):
            raise FoveateError(f"head={self.head!r}: give the number of a head, counted from 1, or 'mean'")
        if self.layer is None:
            chosen = len(network.blocks) - 1
        elif self.layer in network.blocks:
            chosen = network.blocks.index(self.layer)
        elif self.layer in network.attentions:
            chosen = network.attentions.index(self.layer)
        elif self.layer == network.pool and self.layer and not self.rollout:
            return (network.pool,)
        else:
            known = [*network.blocks, *filter(None, [network.pool])]
            raise FoveateError(f"no block with attention is called {self.layer!r}; {near(self.layer, known)}")
        if network.pool and self.layer is None:
            return (*network.attentions, network.pool) if self.rollout else (network.pool,)
        return network.attentions[: chosen + 1] if self.rollout else (network.attentions[chosen],)


def token_maps(model: nn.Module, network: Transformer, images: Tensor, wanted: TokenMaps) -> tuple[Tensor, list[Map]]:
    """Run the model once and read the attention of its tokens.

    Args:
        model: a vision transformer, or what has one in it; left as found.
        network: its parts.
        images: (B, C, H, W), normalised.
        wanted: which maps.

    Returns:
        What the model gives; the maps, each (B, h, w) with the grid of the patches.

    Raises:
        FoveateError: there is no such layer or head, or the attention is not over all tokens of an image.
    """
    names = wanted.check(network)
    rolled: Tensor | None = None
    last: Tensor | None = None

    def take(name: str, weights: Tensor) -> None:
        nonlocal rolled, last
        _check(name, weights, images, network)
        if wanted.rollout and name != network.pool:
            mean = weights.float().mean(dim=1)
            mixed = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
            rolled = mixed if rolled is None else mixed @ rolled
        last = weights

    with preserve_state(model, evaluation=True, no_grad=True) as hooks, attention_weights(model, names, hooks, take):
        output: Tensor = model(images.clone())
    assert last is not None  # noqa: S101 - attention_weights has refused a module that does not run
    title, heads = names[-1], _heads(wanted.head, last.shape[1], names[-1])
    weights = last.float()
    if rolled is not None:
        title, heads = f"rollout to {names[-1]}", [("", None)]
        weights = rolled[:, None]
        if names[-1] == network.pool:  # it reads what the blocks give, with or without what stands in front
            own = last.float().mean(dim=1)
            weights = (own @ rolled[:, rolled.shape[1] - own.shape[2] :])[:, None]
    note = "" if network.readers or names[-1] == network.pool else f", {_PATCHES}"
    maps = []
    for reader, rows in _rows(weights, network, names[-1]):
        for text, index in heads:
            row = rows.mean(dim=1) if index is None else rows[:, index]
            name = " ".join(filter(None, (title, reader, text))) + note
            maps.append(Map(name, _plane(names[-1], row, images, network), names[-1]))
    return output, maps


def _check(name: str, weights: Tensor, images: Tensor, network: Transformer) -> None:
    """Make sure that the weights are of whole images: (B, heads, queries, tokens), the tokens a grid and a prefix."""
    batch, _, queries, tokens = weights.shape
    whole = batch == len(images) and (name == network.pool or queries == tokens)
    if not whole or _prefix(name, tokens, images, network) is None:
        raise FoveateError(
            f"the attention of {name!r} is not over all patches of an image (its weights have the shape "
            f"{tuple(weights.shape)}): use method='gradcam'"
        )


def _prefix(name: str, tokens: int, images: Tensor, network: Transformer) -> int | None:
    """How many of the tokens stand in front of the patches; None where they do not make a grid."""
    height, width = images.shape[2:]
    # An attention pool may leave out what stands in front.
    counts = (network.prefix, 0) if name == network.pool else (network.prefix,)
    return next((count for count in counts if grid_of(tokens - count, height, width)), None)


def _rows(weights: Tensor, network: Transformer, name: str) -> list[tuple[str, Tensor]]:
    """What reads the patches, by name, and its weights (B, heads, tokens)."""
    if name == network.pool:
        return [("", weights.mean(dim=2))]
    if network.readers:
        return [(reader, weights[:, :, place]) for reader, place in network.readers.items()]
    return [("", weights[:, :, network.prefix :].mean(dim=2))]


def _heads(head: int | str | None, count: int, name: str) -> list[tuple[str, int | None]]:
    """What each map is called, and the index of its head; None for the mean of all."""
    every: list[tuple[str, int | None]] = [(f"head {n}/{count}", n - 1) for n in range(1, count + 1)]
    if head is None:
        return every if count > 1 else [("", 0)]
    if head == MEAN:
        return [("mean of heads", None)]
    if isinstance(head, int) and head <= count:
        return [every[head - 1]]
    raise FoveateError(f"head={head}: {name!r} has {count} heads, counted from 1")


def _plane(name: str, row: Tensor, images: Tensor, network: Transformer) -> Tensor:
    """(B, tokens) -> (B, h, w), of the patches."""
    prefix = _prefix(name, row.shape[1], images, network) or 0
    grid = grid_of(row.shape[1] - prefix, *images.shape[2:])
    assert grid is not None  # noqa: S101 - _check has seen it
    return row[:, prefix:].reshape(-1, *grid).cpu()
