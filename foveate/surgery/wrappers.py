"""What calls a mechanism inside a network: gates, wrappers in place of a block or a classifier, and forward hooks.

The hooks are plain functions, so that a copy of a network calls its own copies of the mechanisms.
"""

from __future__ import annotations

import torch
from timm.layers import Linear
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.surgery.forward_pass import PASS_HOOKS, maps_of_pass
from foveate.surgery.hosting import exchange_class

__all__ = [
    "CLASSIFIERS",
    "HOOKS",
    "KEY",
    "Gate",
    "HeadWrapper",
    "PerClass",
    "PoolGate",
    "Replacement",
    "attend_after",
    "attend_with",
    "carry_attributes",
    "mechanism_of",
    "pool_with",
]

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
        pooled: Tensor = self.mechanism(x)
        mean = x.mean(dim=(-2, -1))
        mean = mean.unsqueeze(1) if pooled.ndim == 3 else mean
        return mean + self.gate * (pooled - mean)


def _attended(mechanism: nn.Module, x: Tensor, *, nhwc: bool) -> Tensor:
    """mechanism(x), for a feature map (B, C, H, W) or, with ``nhwc``, (B, H, W, C)."""
    result: Tensor = mechanism(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if nhwc else mechanism(x)
    return result


_OWN = frozenset(vars(nn.Module()))


def carry_attributes(wrapper: nn.Module, replaced: nn.Module) -> None:
    """Give a wrapper the plain attributes of the module that it stands for: a network may read them.

    ultralytics' networks, for one, keep in each module the number of the module whose output it takes.
    """
    for name, value in vars(replaced).items():
        plain = not callable(value) and not isinstance(value, Tensor | nn.Module)
        if plain and name not in _OWN and name not in vars(wrapper) and name != "_foveate":
            setattr(wrapper, name, value)


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
        return _attended(self.foveate, x, nhwc=self.nhwc)  # type: ignore[arg-type]  # a child is a module


class HeadWrapper(nn.Module):
    """Stands where the classifier stood and calls the head, its child ``foveate``.

    Args:
        head: (feature maps, pooled features) -> scores.
        key: of the network, under which hooks record the feature maps of a forward pass.
        nhwc: for each feature map that the head reads, whether it is (B, H, W, C) in the network.
        classes: of the scores, K.
        trailing: axes of size 1 behind the pooled features and the scores.
        split: whether ``forward_features`` and ``forward_head`` may be called one by one.
    """

    def __init__(
        self, head: nn.Module, key: str, nhwc: tuple[bool, ...], classes: int, *, trailing: int, split: bool
    ) -> None:
        super().__init__()
        self.add_module(KEY, head)
        self.key, self.nhwc, self.trailing, self.split = key, nhwc, trailing, split
        self.out_features = classes  # as a Linear says it

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, D) or (B, D, 1, 1) -> scores (B, K) or (B, K, 1, 1).

        Raises:
            FoveateError: the feature maps of the same forward pass are not there, as when the classifier is run alone.
        """
        found = maps_of_pass(self.key, len(self.nhwc), split=self.split)
        maps = [x.permute(0, 3, 1, 2) if nhwc else x for x, nhwc in zip(found, self.nhwc, strict=True)]
        scores: Tensor = self.foveate(maps, pooled.flatten(1))  # type: ignore[operator]  # a child is a module
        return scores[(..., *(None,) * self.trailing)] if self.trailing else scores


CLASSIFIERS = (nn.Linear, Linear)
"""What ``PerClass`` can stand for: one of another class may compute something else with its weights."""


class PerClass(nn.Linear):
    """A classifier with its own features for each class: (B*K, D) -> (B, K), score k from the features k alone.

    Its weights are those of a Linear(D, K).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, K)."""
        features = torch.unflatten(x.flatten(1), 0, (-1, self.out_features))
        scores = torch.einsum("bkd,kd->bk", features, self.weight)
        return scores if self.bias is None else scores + self.bias

    @classmethod
    def take_over(cls, linear: nn.Linear) -> None:
        """Make a plain classifier one of these, in place: its weights, hooks and attributes stay.

        Args:
            linear: of exactly one of ``CLASSIFIERS``.
        """
        vars(linear)["_foveate_class"] = type(linear)
        linear.__class__ = cls

    def give_back(self) -> None:
        """Make it a plain classifier again."""
        exchange_class(self, vars(self).pop("_foveate_class"))


def mechanism_of(module: nn.Module) -> nn.Module:
    """The mechanism itself, without the gate around it."""
    return module.mechanism if isinstance(module, Gate) else module


def _own(module: nn.Module, key: str, mechanism: nn.Module) -> nn.Module:
    """The module's child of this name, for a replica has its own; else the mechanism that the hook knows."""
    child = module._modules.get(key)
    return mechanism if child is None else child


def attend_after(module: nn.Module, _args: tuple[object, ...], output: Tensor) -> Tensor:
    """Give a module's output to the mechanism that is its child.

    Raises:
        FoveateError: a tool moved this hook to a module of its own.
    """
    mechanism = module._modules.get(KEY)
    if mechanism is None:
        raise FoveateError(
            f"the attention of a {type(module).__name__} is lost: a tool moved its hook to this layer without the "
            "attention, as by fusing a convolution with its norm. Use such a tool before foveate.insert"
        )
    result: Tensor = mechanism(output)
    return result


def attend_with(
    mechanism: nn.Module, key: str, nhwc: bool, module: nn.Module, _args: tuple[object, ...], output: Tensor
) -> Tensor:
    """Give a module's output to a mechanism, the module's child of this name if it has one."""
    return _attended(_own(module, key, mechanism), output, nhwc=nhwc)


def pool_with(
    pool: nn.Module, key: str, nhwc: bool, module: nn.Module, _args: tuple[object, ...], output: Tensor
) -> Tensor:
    """Put a feature map of 1x1, the pooled features, in the place of a module's output."""
    pooled: Tensor = _own(module, key, pool)(output.permute(0, 3, 1, 2) if nhwc else output)
    # Features for each class become as many images, which every layer up to the classifier takes one by one.
    pooled = pooled.flatten(0, -2)
    return pooled[:, None, None] if nhwc else pooled[..., None, None]


HOOKS = (attend_after, attend_with, pool_with, *PASS_HOOKS)
