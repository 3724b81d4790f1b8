"""What low precision leaves of a module's contribution, output - input."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["PRECISIONS", "LowPrecision", "Survival"]

PRECISIONS = ("bf16", "fp16", "int8")
_FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_AT_ONCE = 2**22  # elements in float64
_ROUNDING = 8 * torch.finfo(torch.float32).eps  # relative to the output: what float32 itself cannot tell apart


@dataclass(frozen=True)
class Survival:
    """What low precision leaves of a module's contribution, over all elements of all images.

    Args:
        correlation: of the contribution with float32's, both centred; 0 where nothing is left; None where float32's is
            the same everywhere, so that there is no pattern to keep.
        norm_ratio: ||contribution|| / ||float32's contribution||; None where float32's is 0.
        relative_error: ||contribution - float32's|| / ||float32's||: 0 all is kept, 1 as bad as nothing; None as above.
        changed: the share of the elements that are not 0 which the module changes at all.
        overflow: the share of the elements that are infinite or NaN; the other numbers leave them out.
    """

    correlation: float | None
    norm_ratio: float | None
    relative_error: float | None
    changed: float
    overflow: float = 0.0


@dataclass
class _Sums:
    """Over the elements of all batches: m is the contribution in low precision, r float32's."""

    count: int = 0
    finite: int = 0
    nonzero: int = 0
    changed: int = 0
    m: float = 0.0
    r: float = 0.0
    mm: float = 0.0
    rr: float = 0.0
    mr: float = 0.0
    error: float = 0.0
    output: float = 0.0

    def add(self, moved: Tensor, exact: Tensor, output: Tensor, changed: Tensor, nonzero: Tensor) -> None:
        finite = moved.isfinite()
        m, r, out = (values[finite].double() for values in (moved, exact, output))
        self.count += moved.numel()
        self.finite += len(m)
        self.nonzero += int(nonzero.sum())
        self.changed += int((changed & nonzero).sum())
        for name, value in (("m", m), ("r", r)):
            setattr(self, name, getattr(self, name) + float(value.sum()))
        products = {"mm": (m, m), "rr": (r, r), "mr": (m, r), "error": (m - r, m - r), "output": (out, out)}
        for name, (one, other) in products.items():
            setattr(self, name, getattr(self, name) + float(one @ other))

    def result(self) -> Survival:
        changed = self.changed / max(self.nonzero, 1)
        overflow = 1 - self.finite / self.count
        if not self.finite or self.rr == 0:
            return Survival(None, None, None, changed, overflow)
        ratio, error = math.sqrt(self.mm / self.rr), math.sqrt(self.error / self.rr)
        patterns = [
            max(square - total**2 / self.finite, 0.0) for square, total in ((self.mm, self.m), (self.rr, self.r))
        ]
        correlation: float | None = None
        if self.mm == 0:
            correlation = 0.0
        elif math.sqrt(patterns[1]) > _ROUNDING * math.sqrt(self.output):
            size = math.sqrt(patterns[0] * patterns[1])
            correlation = (self.mr - self.m * self.r / self.finite) / size if size > 0 else 0.0
        return Survival(correlation, ratio, error, changed, overflow)


@dataclass
class LowPrecision:
    """The module run again in bf16 and fp16, and its input and output rounded to 8 bits on a grid that they share.

    int8 is an upper limit: the module itself is computed in float32, and only what stands in memory before and after
    it has 8 bits, from the least to the largest value of all images. So ``range`` sees all of them before ``see`` does.

    Args:
        outer: the module with its gate; copies of it run.
    """

    outer: nn.Module
    least: float = math.inf
    largest: float = -math.inf
    sums: dict[str, _Sums] = field(default_factory=dict)
    copies: dict[torch.dtype, nn.Module] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def range(self, given: Tensor, output: Tensor) -> None:
        """Widen the grid of int8 by a batch's input and output."""
        self.least = min(self.least, float(given.min()), float(output.min()))
        self.largest = max(self.largest, float(given.max()), float(output.max()))

    def see(self, given: Tensor, output: Tensor) -> None:
        """Measure a batch.

        Args:
            given: (B, C, H, W), the module's input.
            output: what the module gives, of the same shape.
        """
        if given.dtype in _FLOATS.values():
            output = self._copy(torch.float32).forward(given.float())
        given, output = given.float(), output.float()
        exact = output - given
        for name, dtype in _FLOATS.items():
            if name in self.failed:
                continue
            low = given.to(dtype)
            try:
                after = self._copy(dtype).forward(low)  # not called, so that no hook on it runs
            except (RuntimeError, TypeError):  # an operation that has no such kernel here
                self.failed.add(name)
                continue
            self._add(name, after.float() - low.float(), exact, output, after != low, low != 0)
        step = (self.largest - self.least) / 255 or 1.0
        before, after = (((values - self.least) / step).round().clamp(0, 255) for values in (given, output))
        self._add("int8", (after - before) * step, exact, output, after != before, given != 0)

    def result(self) -> dict[str, Survival | None]:
        """By name of ``PRECISIONS``; None where the machine cannot run the module so, or nothing was seen."""
        return {
            name: self.sums[name].result() if name in self.sums and name not in self.failed else None
            for name in PRECISIONS
        }

    def _add(self, name: str, *values: Tensor) -> None:
        sums = self.sums.setdefault(name, _Sums())
        images = max(1, _AT_ONCE // values[0][0].numel())
        for part in zip(*(torch.split(value, images) for value in values), strict=True):
            sums.add(*part)

    def _copy(self, dtype: torch.dtype) -> nn.Module:
        if dtype not in self.copies:
            self.copies[dtype] = copy.deepcopy(self.outer).to(dtype)
        return self.copies[dtype]
