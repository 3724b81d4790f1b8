"""What inserted modules do in forward passes, as numbers: their maps, their contribution, their time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foveate.explanations.axes import check_axes
from foveate.model_info import device_and_dtype
from foveate.preserve import preserve_state
from foveate.studies.evaluation.in_memory import LoadedImages
from foveate.studies.evaluation.judges import Judge
from foveate.studies.evaluation.whole_in_memory import LoadedWhole

__all__ = ["CONSTANT", "AuditPasses", "ContributionStatistics", "MapStatistics", "factor_of", "own_maps", "plain_of"]

CONSTANT = 0.01  # a map none of whose values varies by 1% between images counts as the same for all
_AT_ONCE = 2**22  # values in float64 at a time: the map of N x N positions is large
_TIMED = 5  # forward passes whose median time counts
_ROUNDING = 1e-7  # a standard deviation below this part of the mean is float32's rounding


def own_maps(module: Any, inputs: Sequence[Any]) -> list[Tensor]:
    """The module's own maps of a batch, one tensor (B, maps, rows, N) for each feature map that it reads.

    Nothing is averaged. N are the spatial positions, or the channels of a map without any. Rows are what a drawing
    averages out: a map for each query position (q), or for each channel (c). Maps are the other axes, such as groups.
    """
    found = module.attend(*inputs)
    maps: list[Tensor] = []
    for level in found if isinstance(found, tuple) else (found,):
        words = check_axes(level, str(module.map_axes), type(module).__name__)
        spatial = {"h", "w"} <= set(words)
        positions = [word for word in words if word in (("h", "w") if spatial else ("c",))]
        rows = [word for word in words if word in ("q", "c") and word not in positions]
        others = [word for word in words[1:] if word not in (*positions, *rows)]
        sizes = dict(zip(words, level.shape, strict=True))
        ordered = level.detach().permute([words.index(word) for word in ("b", *others, *rows, *positions)])
        shape = [math.prod(sizes[word] for word in part) for part in (others, rows, positions)]
        maps.append(ordered.reshape(len(level), *shape))
    return maps


@dataclass
class _Sums:
    """Over the images of one size, for each map: the sum of its values and of their squares, (rows, N) each."""

    images: int
    sums: list[Tensor]
    squares: list[Tensor]

    def moments(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each map the mean and the standard deviation between images of each value, (rows, N)."""
        for total, square in zip(self.sums, self.squares, strict=True):
            mean = total / self.images
            deviation = (square / self.images - mean.square()).clamp_min(0).sqrt()
            deviation[deviation < _ROUNDING * mean.abs()] = 0
            yield from zip(mean.unbind(), deviation.unbind(), strict=True)


@dataclass
class MapStatistics:
    """Sums over batches, from which follow how uniform the maps are and how much they differ between images.

    Values are compared between images of one size alone: maps of others have other positions.
    """

    entropy: list[float] = field(default_factory=list)  # of each image and map, relative to log N; NaN: not defined
    area: list[float] = field(default_factory=list)  # exp(entropy) / N
    of_size: dict[tuple[tuple[int, ...], ...], _Sums] = field(default_factory=dict)

    def see(self, maps: Sequence[Tensor], size: tuple[int, ...] = ()) -> None:
        """Add a batch's maps, each (B, maps, rows, N), of feature maps of one size."""
        if not maps:
            return
        shapes = (size, *(values.shape[1:] for values in maps))
        if shapes not in self.of_size:
            zeros = [torch.zeros(values.shape[1:], dtype=torch.float64, device=values.device) for values in maps]
            self.of_size[shapes] = _Sums(0, zeros, [torch.zeros_like(total) for total in zeros])
        found = self.of_size[shapes]
        found.images += len(maps[0])
        for total, square, values in zip(found.sums, found.squares, maps, strict=True):
            for part in torch.split(values, max(1, _AT_ONCE // values[0].numel())):
                doubles = part.double()
                self._uniformity(doubles)
                total += doubles.sum(dim=0)
                square += doubles.square().sum(dim=0)

    def _uniformity(self, values: Tensor) -> None:
        total = values.sum(dim=3, keepdim=True)
        share = values / total
        defined = (values >= 0).all(dim=3) & (total[..., 0] > 0)
        entropy = torch.where(defined, -torch.xlogy(share, share).sum(dim=3), torch.nan)
        positions = values.shape[3]
        if positions > 1:
            self.entropy += (entropy / math.log(positions)).nanmean(dim=2).flatten().tolist()
        self.area += (entropy.exp() / positions).nanmean(dim=2).flatten().tolist()

    @property
    def count(self) -> int:
        """How many maps an image has."""
        return next((sum(map(len, found.sums)) for found in self.of_size.values()), 0)

    def variation(self) -> list[float]:
        """For each map its standard deviation between images, averaged over its values, in units of their mean."""

        def relative(mean: Tensor, deviation: Tensor) -> float:
            size = float(mean.abs().mean())
            return float(deviation.mean()) / size if size else 0.0

        images = sum(found.images for found in self.of_size.values())
        return [sum(count * value for count, value in of) / images for of in self._of_maps(relative)]

    def largest_variation(self) -> list[float]:
        """For each map the largest standard deviation of one of its values, relative to it or to the mean value."""

        def relative(mean: Tensor, deviation: Tensor) -> float:
            size = float(mean.abs().mean())
            return float((deviation / mean.abs().clamp_min(size)).max()) if size else 0.0

        return [max(value for _, value in of) for of in self._of_maps(relative)]

    def _of_maps(self, measure: Callable[[Tensor, Tensor], float]) -> list[list[tuple[int, float]]]:
        """For each map, of each size the number of images and a measure of its moments."""
        of_sizes = [[(of.images, measure(*one)) for one in of.moments()] for of in self.of_size.values()]
        return [list(of_map) for of_map in zip(*of_sizes, strict=True)]

    @property
    def constant(self) -> float | None:
        """The share of the maps that are the same for every image: none of their values varies by 1%."""
        varied = self.largest_variation()
        return sum(value < CONSTANT for value in varied) / len(varied) if varied else None


@dataclass
class ContributionStatistics:
    """How large output - input is, over batches: as a whole, and in the channel that is changed most.

    One channel with large values hides in the norm of the whole what happens in all others.
    """

    relative: list[float] = field(default_factory=list)  # ||output - plain|| / ||plain|| of each image
    moved: Tensor | None = None  # (C,) sum of squares of output - plain
    given: Tensor | None = None  # (C,) sum of squares of plain

    def see(self, plain: Tensor, output: Tensor) -> None:
        """Add a batch: what stands in the module's place without it, and what the module gives; alike in shape."""
        images = max(1, _AT_ONCE // plain[0].numel())
        for part in zip(torch.split(plain.detach(), images), torch.split(output.detach(), images), strict=True):
            self._add(*(values.double() for values in part))

    def _add(self, plain: Tensor, output: Tensor) -> None:
        difference = output - plain
        self.relative += (difference.flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1).clamp_min(1e-30)).tolist()
        channels = 2 if plain.ndim == 3 else 1  # (B, C, H, W), (B, C), or (B, K, C)
        others = [axis for axis in range(plain.ndim) if axis != channels]
        moved, given = (values.square().sum(dim=others) for values in (difference, plain))
        self.moved = moved if self.moved is None else self.moved + moved
        self.given = given if self.given is None else self.given + given

    @property
    def mean(self) -> float | None:
        """||output - plain|| / ||plain||, the mean over the images."""
        return sum(self.relative) / len(self.relative) if self.relative else None

    @property
    def largest_channel(self) -> float | None:
        """The same of the channel where it is largest, over all images; a channel near 0 counts as an ordinary one."""
        if self.moved is None or self.given is None:
            return None
        moved, given = self.moved.sqrt(), self.given.sqrt()
        ordinary = float(given[given > 0].median()) if bool((given > 0).any()) else 1.0
        return float((moved / given.clamp_min(1e-3 * ordinary)).max())


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


def factor_of(module: object, given: Tensor, output: Tensor) -> Tensor | None:
    """The factor f with output = f * x that a module's own map gives, (B, ...); None where it works in another way.

    Tried, not looked up: the map and 1 + map, repeated for the channels as its axes say, must give the output, in each
    channel up to rounding at that channel's own scale.
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
    small = 1e-5 * output.abs().amax(dim=(0, 2, 3), keepdim=True)
    for factor in (found, 1 + found):
        if bool(((given * factor - output).abs() <= 1e-3 * output.abs() + small).all()):
            return factor
    return None


class AuditPasses:
    """Forward passes over all images, with hooks, on the caller's model."""

    def __init__(
        self,
        model: nn.Module,
        loaded: LoadedImages | LoadedWhole,
        judge: Judge,
        size: int,
        advance: Callable[[int], None],
    ) -> None:
        self.model, self.loaded, self.judge, self.size, self.advance = model, loaded, judge, size, advance
        self.device, self.dtype = device_and_dtype(model)
        self.images = 0  # of the batch that is shown

    def predictions(self, hooked: list[tuple[nn.Module, Callable[..., object]]]) -> Tensor:
        """(N, ...) what the judge reads of each image; below 0 where a score is NaN or infinite."""
        found = []
        with preserve_state(self.model, evaluation=True, no_grad=True) as hooks:
            hooks += [module.register_forward_hook(hook) for module, hook in hooked]
            for images, labels in self.loaded.batches(self.size, self.device):
                self.images = len(images)
                output = self.model(images.to(self.dtype).clone())
                found.append(self.judge.read(output, labels, (int(images.shape[2]), int(images.shape[3]))))
                self.advance(len(images))
        return torch.cat(found)

    def times(self, modules: list[nn.Module]) -> tuple[float, list[float]]:
        """Seconds of one pass over the first batch, and each module's share: medians."""
        images = next(self.loaded.batches(self.size, self.device))[0].to(self.dtype)
        began: dict[int, float] = {}
        shares: list[list[float]] = [[] for _ in modules]
        totals: list[float] = []
        inside = [0.0] * len(modules)

        def stop(index: int) -> Callable[..., None]:
            def hook(*_: object) -> None:
                inside[index] += self._now() - began[index]

            return hook

        def start(index: int) -> Callable[..., None]:
            def hook(*_: object) -> None:
                began[index] = self._now()

            return hook

        with preserve_state(self.model, evaluation=True, no_grad=True) as hooks:
            for index, module in enumerate(modules):
                hooks.append(module.register_forward_pre_hook(start(index)))
                hooks.append(module.register_forward_hook(stop(index)))
            for turn in range(_TIMED + 1):
                inside[:] = [0.0] * len(modules)
                given = images.clone()
                begin = self._now()
                self.model(given)
                total = self._now() - begin
                if turn:  # the first one warms up
                    totals.append(total)
                    for index, seconds in enumerate(inside):
                        shares[index].append(seconds / total)
        return statistics.median(totals), [statistics.median(share) for share in shares]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
