"""The modules that hold a mechanism inside a network: gates, and what stands where a block or a classifier stood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["KEY", "Gate", "HeadPlace", "PerClass", "PoolGate", "Replacement", "attended", "mechanism_of"]

KEY = "foveate"  # the name of the child that a mechanism becomes


class Gate(nn.Module):
    """x + gate * (mechanism(x) - x), with a gate that starts at 0: exactly the identity until it is trained.

    Args:
        mechanism: (B, C, H, W) -> (B, C, H, W).

    Source: the zero-initialised residual weight of Bachlechner et al., ReZero is All You Need, 2020.
    """

    def __init__(self, mechanism: nn.Module) -> None:
        super().__init__()
        self.mechanism = mechanism
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The gated mechanism; equal to x, element by element and in its strides, while the gate is 0."""
        return _strided_like(x + self.gate * (self.mechanism(x) - x), x)


@torch.fx.wrap
def _strided_like(out: Tensor, x: Tensor) -> Tensor:
    """A batch of 1 may have any stride there, and the next layer may choose by it how to compute, and so to round."""
    if torch.compiler.is_compiling():
        return out
    pairs = zip(out.shape, out.stride(), x.stride(), strict=True)
    other = [size for size, ours, theirs in pairs if ours != theirs]
    return out.as_strided(out.shape, x.stride()) if other and set(other) == {1} else out


class PoolGate(Gate):
    """mean + gate * (pool(x) - mean), with a gate that starts at 0: global average pooling until it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> what the pool gives: (B, C), or (B, K, C) with features for each class."""
        pooled = self.mechanism(x)
        mean = x.mean(dim=(-2, -1))
        mean = mean.unsqueeze(1) if pooled.ndim == 3 else mean
        return mean + self.gate * (pooled - mean)


def attended(mechanism: nn.Module, x: Tensor, *, nhwc: bool) -> Tensor:
    """mechanism(x), for a feature map (B, C, H, W) or, with ``nhwc``, (B, H, W, C)."""
    result: Tensor = mechanism(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if nhwc else mechanism(x)
    return result


class Replacement(nn.Module):
    """Stands where a block stood and calls the mechanism, its child ``foveate``.

    Args:
        mechanism: (B, C, H, W) -> (B, C, H, W).
        nhwc: the network's feature map here is (B, H, W, C).
    """

    def __init__(self, mechanism: nn.Module, *, nhwc: bool = False) -> None:
        super().__init__()
        self.add_module(KEY, mechanism)
        self.nhwc = nhwc

    def forward(self, x: Tensor) -> Tensor:
        """mechanism(x)."""
        return attended(self.foveate, x, nhwc=self.nhwc)  # type: ignore[arg-type]


class HeadPlace(nn.Module):
    """Stands where the classifier stood and calls the head, its child ``foveate``.

    Args:
        head: (feature maps, pooled features) -> scores.
        maps: how many feature maps the head reads. Hooks put them into ``kept``, and each forward pass takes them out.
        classes: of the scores, K.
    """

    def __init__(self, head: nn.Module, maps: int, classes: int) -> None:
        super().__init__()
        self.add_module(KEY, head)
        self.kept: dict[int, Tensor] = {}
        self.maps = maps
        self.out_features = classes  # as a Linear says it

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, D) or (B, D, 1, 1) -> scores (B, K) or (B, K, 1, 1).

        Raises:
            FoveateError: the feature maps are not there, as when the classifier is run alone.
        """
        if len(self.kept) != self.maps:
            raise FoveateError("the head in the classifier's place reads feature maps: run the whole network")
        maps = [self.kept.pop(index) for index in range(self.maps)]
        scores: Tensor = self.foveate(maps, pooled.flatten(1))  # type: ignore[operator]
        return scores.reshape(*scores.shape, *pooled.shape[2:])


class PerClass(nn.Linear):
    """A classifier with its own features for each class: (B*K, D) -> (B, K), score k from the features k alone.

    Its weights are those of a Linear(D, K).
    """

    kind: type[nn.Linear] = nn.Linear  # of the plain classifier: timm has a Linear of its own

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, K)."""
        features = x.flatten(1).unflatten(0, (-1, self.out_features))
        scores = torch.einsum("bkd,kd->bk", features, self.weight)
        return scores if self.bias is None else scores + self.bias

    @classmethod
    def of(cls, linear: nn.Linear) -> PerClass:
        """One that shares the weights of a plain classifier."""
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        made.weight, made.bias, made.kind = linear.weight, linear.bias, type(linear)
        return made.train(linear.training)

    def plain(self) -> nn.Linear:
        """A plain classifier that shares the weights."""
        made = self.kind(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        made.weight, made.bias = self.weight, self.bias
        return made.train(self.training)


def mechanism_of(module: nn.Module) -> nn.Module:
    """The mechanism itself, without the gate around it."""
    return module.mechanism if isinstance(module, Gate) else module
