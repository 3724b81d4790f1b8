"""What an attention module adds, out - x, in a file beside the network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

__all__ = ["LEAST_CORRELATION", "Comparison", "Contribution"]

LEAST_CORRELATION = 0.95
"""Of what a module adds in the file with what it adds in the network; below it, it counts as lost."""
_LARGEST_ERROR = math.sqrt(1 - LEAST_CORRELATION**2)  # the relative error that goes with it
_NOTHING = 1e-6  # of the norm of x: what is smaller is rounding


@dataclass(frozen=True)
class Contribution:
    """What one attention module adds, out - x, in the file beside the network, where the next layer reads it.

    Args:
        site: where it stands.
        correlation: Pearson's, over all images, channels and positions; None where it is not defined: the module adds
            nothing, or the same everywhere, or it cannot be found in the file.
        error: norm of the difference divided by the norm of what the network's module adds; None where that is 0, or
            the module cannot be found in the file.
        remedy: what was done for it; an empty text for nothing.
        reason: why a number is None.
    """

    site: str
    correlation: float | None
    error: float | None
    remedy: str = ""
    reason: str = ""

    @property
    def lost(self) -> bool:
        """Whether the file's module does not add what the network's does."""
        if self.correlation is not None:
            return self.correlation < LEAST_CORRELATION
        return self.error is not None and self.error > _LARGEST_ERROR

    def with_remedy(self, remedy: str) -> Contribution:
        """The same with what was done."""
        return replace(self, remedy=remedy)

    def __str__(self) -> str:
        if self.correlation is not None:
            text = f"correlation {self.correlation:.3f}"
        elif self.error is not None:
            text = f"correlation not defined ({self.reason}), relative error {self.error:.3f}"
        else:
            text = f"correlation not defined: {self.reason}"
        return f"attention at {self.site}: {text}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass
class Comparison:
    """Sums over images of what one module adds in the network, d = out - x, and in the file, e."""

    count: int = 0
    sums: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(6))  # d, e, dd, ee, de, xx

    def add(self, x: np.ndarray[Any, Any], d: np.ndarray[Any, Any], e: np.ndarray[Any, Any]) -> None:
        """Take some images: the network's x and d, and the file's e, arrays of one shape."""
        x, d, e = (values.astype(np.float64).ravel() for values in (x, d, e))
        self.count += d.size
        self.sums += [d.sum(), e.sum(), d @ d, e @ e, d @ e, x @ x]

    def contribution(self, site: str) -> Contribution:
        """The numbers of what was added up."""
        d, e, dd, ee, de, xx = self.sums
        smallest = _NOTHING**2 * xx
        if dd <= smallest:
            return Contribution(site, None, None, reason="it adds nothing in the network")
        error = math.sqrt(max(ee - 2 * de + dd, 0.0) / dd)
        varied, other = dd - d * d / self.count, ee - e * e / self.count
        if varied <= smallest:
            return Contribution(site, None, error, reason="it adds the same everywhere in the network")
        # Where nothing of it is left in the file there is no spread, either.
        product = de - d * e / self.count
        return Contribution(site, float(product / math.sqrt(varied * other)) if other > 0 else 0.0, error)
