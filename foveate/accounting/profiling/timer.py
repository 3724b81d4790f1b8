"""Several calls timed in turns in one process, and how sure the median of their ratios is.

What slows a machine down for a while slows neighbouring calls alike: their ratio hardly moves, where each time does.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Quantiles", "interleaved"]

LEAST = 3
"""Rounds that are run however long they take."""


@dataclass(frozen=True)
class Quantiles:
    """A median and how far the values spread.

    Args:
        median: of the values.
        lower_quartile: a quarter of the values lie below.
        upper_quartile: a quarter of them lie above.
        low: lower end of an interval that holds the true median in at least 95% of cases, where there are six values
            or more; of fewer values the lowest.
        high: its upper end; of fewer than six values the highest.
        count: how many values.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """The spread of at least one value.

        The interval is that of the sign test, from the k-th lowest to the k-th highest value: it holds whatever the
        values' distribution is, as long as they do not depend on each other.
        """
        ordered = sorted(values)
        lower, median, upper = (float(q) for q in np.quantile(ordered, (0.25, 0.5, 0.75)))
        k = _outside(len(ordered))
        return cls(median, lower, upper, ordered[k], ordered[-1 - k], len(ordered))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def _outside(count: int) -> int:
    """How many of the lowest values an interval of at least 95% leaves out: binomial tails of at most 2.5%."""
    tail, k = 0.5**count, 0
    while tail <= 0.025:
        k += 1
        tail += math.comb(count, k) * 0.5**count
    return max(0, k - 1)


def interleaved(
    calls: Sequence[Callable[[], object]], rounds: int, *, warmup: int = 2, seconds: float = math.inf
) -> list[tuple[float, ...]]:
    """Time calls in turns: A B A B.

    Args:
        calls: each is done when it returns.
        rounds: how often each is timed.
        warmup: rounds before, which are not timed.
        seconds: no round begins after so long, but three are run at least.

    Returns:
        For each round the seconds of each call.
    """
    for _ in range(warmup):
        for call in calls:
            call()
    found: list[tuple[float, ...]] = []
    with _without_garbage_collection():
        began = time.perf_counter()
        while len(found) < rounds and (len(found) < LEAST or time.perf_counter() - began < seconds):
            found.append(tuple(_seconds(call) for call in calls))
    return found


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
