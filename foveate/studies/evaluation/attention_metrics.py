"""What one inserted module does in one forward pass, as numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foveate.explanations.axes import split_map

__all__ = ["MapStatistics", "Survival", "contribution", "factor_of", "low_precision", "own_maps", "plain_of"]

CONSTANT = 0.01  # a map whose values vary by less than 1% of their mean between images counts as the same for all


def own_maps(module: Any, inputs: Sequence[Any]) -> list[Tensor]:
    """The module's own maps of a batch, each (B, N): over the places, or over the channels.

    Maps for each class or head count each; places that look and channels are averaged as they are drawn.
    """
    found = module.attend(*inputs)
    maps: list[Tensor] = []
    for level in found if isinstance(found, tuple) else (found,):
        planes, channels = split_map(level, str(module.map_axes), "")
        maps += [plane.values.flatten(1) for plane in planes] or [weights for _, weights in channels]
    return maps


@dataclass
class MapStatistics:
    """Sums over batches, from which follow how uniform the maps are and how much they differ between images."""

    images: int = 0
    entropy: list[float] = field(default_factory=list)  # of each image and map, relative to log N; NaN: not defined
    area: list[float] = field(default_factory=list)  # exp(entropy) / N
    sums: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)

    def see(self, maps: Sequence[Tensor]) -> None:
        """Add a batch's maps, each (B, N)."""
        doubles = [values.double() for values in maps]
        for values in doubles:
            total = values.sum(dim=1, keepdim=True)
            share = values / total
            fine = (values >= 0).all(dim=1) & (total[:, 0] > 0)
            entropy = torch.where(fine, -torch.xlogy(share, share).sum(dim=1), torch.nan)
            places = values.shape[1]
            self.entropy += (entropy / math.log(places)).tolist() if places > 1 else []
            self.area += (entropy.exp() / places).tolist()
        if not self.sums:
            self.sums = [torch.zeros(values.shape[1], dtype=torch.float64) for values in doubles]
            self.squares = [torch.zeros_like(total) for total in self.sums]
        self.images += len(doubles[0]) if doubles else 0
        for total, square, values in zip(self.sums, self.squares, doubles, strict=True):
            total += values.sum(dim=0)
            square += values.square().sum(dim=0)

    def variation(self) -> list[float]:
        """For each map its standard deviation between images, averaged over places, in units of its mean value."""
        found = []
        for total, square in zip(self.sums, self.squares, strict=True):
            mean = total / self.images
            deviation = (square / self.images - mean.square()).clamp_min(0).sqrt()
            # What rounding alone leaves of equal numbers is no variation.
            deviation[deviation < 1e-7 * mean.abs()] = 0
            size = float(mean.abs().mean())
            found.append(float(deviation.mean()) / size if size else 0.0)
        return found

    @property
    def constant(self) -> float | None:
        """The share of the maps that are the same for every image."""
        varied = self.variation()
        return sum(value < CONSTANT for value in varied) / len(varied) if varied else None


def plain_of(verb: str, given: Tensor, output: Tensor) -> Tensor:
    """What stands in a module's place when it is switched off: its input; for a pool the mean.

    Args:
        verb: of its placement.
        given: (B, C, H, W), the module's input.
        output: what the module gives.
    """
    if verb != "as pool":
        return given
    mean = given.mean(dim=(2, 3))
    return mean.unsqueeze(1).expand_as(output) if output.ndim == 3 else mean


def contribution(plain: Tensor, output: Tensor) -> Tensor:
    """||output - plain|| / ||plain|| for each image, (B,)."""
    plain, output = plain.flatten(1).double(), output.flatten(1).double()
    return (output - plain).norm(dim=1) / plain.norm(dim=1).clamp_min(1e-30)


def factor_of(module: Any, given: Tensor, output: Tensor) -> Tensor | None:
    """The factor f with output = f * x that a module's own map gives, (B, ...); None where it works in another way.

    Tried, not looked up: the map and 1 + map, spread over the channels as its axes say, must give the output.
    """
    axes = str(getattr(module, "map_axes", ""))
    if not hasattr(module, "attend") or axes not in ("b g h w", "b c", "b c h w", "b h w"):
        return None
    found: Tensor = module.attend(given)
    if axes == "b g h w":
        if given.shape[1] % found.shape[1]:
            return None
        found = found.repeat_interleave(given.shape[1] // found.shape[1], dim=1)
    found = found[:, :, None, None] if axes == "b c" else found[:, None] if axes == "b h w" else found
    for factor in (found, 1 + found):
        if torch.allclose(given * factor, output, rtol=1e-3, atol=1e-5 * float(output.abs().max())):
            return factor
    return None


@dataclass(frozen=True)
class Survival:
    """What low precision leaves of a module's contribution.

    Args:
        correlation: of output - input with float32's, over all elements; 0 where nothing is left.
        changed: the share of the elements that are not 0 which the module changes at all.
    """

    correlation: float
    changed: float


def low_precision(outer: nn.Module, given: Tensor, output: Tensor) -> dict[str, Survival | None]:
    """The module run again in bf16 and fp16, and its input and output rounded to 8 bits on a grid that they share.

    int8 is an upper limit: the module itself is computed in float32, and only what stands in memory before and after
    it has 8 bits, from the least to the largest value of the batch.

    Args:
        outer: the module with its gate; a copy runs.
        given: (B, C, H, W) float32.
        output: what it gives, of the same shape.

    Returns:
        For "bf16", "fp16" and "int8"; None where the machine cannot run the module so.
    """
    exact = (output - given).float()
    found: dict[str, Survival | None] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        try:
            low = given.to(dtype)
            after = copy.deepcopy(outer).to(dtype).forward(low)  # not called, so that no hook on it runs
        except (RuntimeError, TypeError):  # an operation that has no such kernel here
            found[name] = None
            continue
        found[name] = _survival(low, after, exact)
    least = float(min(given.min(), output.min()))
    step = (float(max(given.max(), output.max())) - least) / 255 or 1.0
    codes = [((values.float() - least) / step).round() for values in (given, output)]
    found["int8"] = _survival(codes[0], codes[1], exact, given != 0)
    return found


def _survival(before: Tensor, after: Tensor, exact: Tensor, counted: Tensor | None = None) -> Survival:
    moved = (after.float() - before.float()).flatten().double()
    counted = before != 0 if counted is None else counted
    changed = float(((after != before) & counted).sum() / counted.sum().clamp_min(1))
    reference = exact.flatten().double()
    moved, reference = moved - moved.mean(), reference - reference.mean()
    size = float(moved.norm() * reference.norm())
    return Survival(float(moved @ reference) / size if size > 0 and math.isfinite(size) else 0.0, changed)
