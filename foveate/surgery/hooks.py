"""The forward hooks that call mechanisms: plain functions, so that a copy of a network calls its own copies."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.surgery.wrappers import attended

__all__ = ["HOOKS", "attend_after", "attend_with", "keep_map", "pool_with"]


def attend_after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
    """Give a module's output to the mechanism that it keeps."""
    return module.foveate(output)  # type: ignore[operator]


def attend_with(mechanism: nn.Module, nhwc: bool, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
    """Give a module's output to a mechanism that is kept elsewhere."""
    return attended(mechanism, output, nhwc=nhwc)


def keep_map(
    kept: dict[int, Tensor],
    index: int,
    nhwc: bool,
    module: nn.Module,  # noqa: ARG001
    args: tuple[Any, ...],  # noqa: ARG001
    output: Tensor,
) -> None:
    """Keep a module's output for a head."""
    kept[index] = output.permute(0, 3, 1, 2) if nhwc else output


def pool_with(pool: nn.Module, nhwc: bool, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
    """Put a feature map of 1x1, the pooled features, in the place of a module's output."""
    pooled: Tensor = pool(output.permute(0, 3, 1, 2) if nhwc else output)
    # Features for each class become as many images, which every layer up to the classifier takes one by one.
    pooled = pooled.flatten(0, -2)
    return pooled[:, None, None] if nhwc else pooled[..., None, None]


HOOKS = (attend_after, attend_with, keep_map, pool_with)
