"""Threads that sleep while they wait for each other, for as long as other programs want the cores.

By default GNU's OpenMP, which torch brings on Linux, lets a thread that waits spin some 300,000 times before it
sleeps: fastest where every thread has a core, and a standstill where it has not, for then those that spin keep the
cores from those that are waited for. Its manual (GOMP_SPINCOUNT) says that it spins 100 times only while a process has
more OpenMP threads than cores. A second team that does nothing therefore changes how all of them wait, and taking it
away changes it back; the number of threads that share an operation, and with it every bit of a result, stays.

Beside a program that keeps one of two cores busy, one thread is faster than two, whether they spin or sleep; since it
adds numbers in another order, it is taken only where the caller asks for that.
"""

from __future__ import annotations

import logging
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["SharedCores"]

logger = logging.getLogger("foveate")

_SPIN, _SLEEP, _FEWER = "spin", "sleep", "fewer threads"
_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # of the user's, which stand
_WAITED = 0.05  # share of its time in which a thread may want a core and get none before another way is tried
_BUSY = 0.2  # the same, before a loop, for it to begin with sleeping
_BETTER = 0.97  # of the time of a step: a smaller gain is noise
_WINDOW = 1.0  # seconds that a trial takes
_LONGEST = 64.0  # seconds for which one way is kept before the other is tried again
_STEPS = 64  # of a kind whose times are remembered
_MOST = 256  # threads of teams that do nothing
_GRAIN = 2**15  # elements that torch gives a thread at least


class SharedCores:
    """Decides again and again, while a loop computes on the CPU, whether waiting threads spin or sleep.

    Where this thread waits for a core, as Linux counts it, for more than a twentieth of its time, another way is tried
    for a second and kept if the loop's steps are faster. Beside a program that computes all the time sleeping is
    faster; beside processes that work little, as those that load images, spinning is. Elsewhere than on Linux and with
    one thread nothing is changed, and threads do not sleep where OMP_WAIT_POLICY or GOMP_SPINCOUNT is set. To be used
    in a ``with`` statement, by one thread, which has its number of threads again afterwards.

    Args:
        fewer_threads: to compute with one thread fewer is another way; it changes the last bits of results.
        say: is called with a line where the number of threads changes for longer than a trial.
    """

    def __init__(self, *, fewer_threads: bool = False, say: Callable[[str], None] = logger.debug) -> None:
        self._threads, self._fewer, self._say = torch.get_num_threads(), fewer_threads, say
        self._ways, self._way, self._tried = [_SPIN], _SPIN, 0
        self._stop: threading.Event | None = None
        self._holders: list[threading.Thread] = []
        self._before: tuple[int, int] | None = None
        self._next = 0.0
        self._patience = _WINDOW
        self._last: tuple[str, float] | None = None
        self._steps: dict[str, deque[float]] = {}
        self._other: tuple[str, dict[str, float]] | None = None

    @property
    def sleeping(self) -> bool:
        """Whether threads that wait sleep by this object's decision."""
        return self._way == _SLEEP

    def __enter__(self) -> SharedCores:
        several, users = self._threads > 1, any(name in os.environ for name in _SETTINGS)
        self._ways = [_SPIN]
        self._ways += [_SLEEP] if several and self._teams() and not users else []
        self._ways += [_FEWER] if several and self._fewer else []
        self._before = _schedule() if len(self._ways) > 1 else None
        if self._before is not None:
            self._next, self._patience = time.perf_counter() + _WINDOW, _WINDOW
            self._last, self._steps, self._other, self._tried = None, {}, None, 0
            if _SLEEP in self._ways and _share((0, 0), self._before) > _BUSY:  # since the thread's start
                self._take(_SLEEP)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._take(_SPIN)
        self._before = None

    def look(self, kind: str = "") -> None:
        """Decide anew where the last decision is old enough; a call takes no time that could be noticed.

        Args:
            kind: of the step that begins, which ends at the next call; times are compared of one kind alone.
        """
        if self._before is None:
            return
        now = time.perf_counter()
        if self._last is not None:
            before, at = self._last
            self._steps.setdefault(before, deque(maxlen=_STEPS)).append(now - at)
        self._last = (kind, now)
        if now >= self._next:
            self._decide(self._before)
            self._next = time.perf_counter() + (_WINDOW if self._other is not None else self._patience)

    def _decide(self, before: tuple[int, int]) -> None:
        now = _schedule()
        if now is None:
            return
        if self._other is not None:  # a trial ends
            way, times = self._other
            gain = self._gain(times)
            self._other = None
            if gain is None or gain > _BETTER:
                self._take(way)
            elif _FEWER in (way, self._way):
                threads = f"{torch.get_num_threads()} of {self._threads}"
                self._say(f"threads: {threads} from here on, for a step takes {gain:.2f} of the time with them")
            self._patience = min(2 * self._patience, _LONGEST)
        elif self._way != _SPIN or _share(before, now) > _WAITED:
            self._other = (self._way, {kind: statistics.median(times) for kind, times in self._steps.items()})
            ways = [way for way in self._ways if way != self._way]
            self._take(ways[self._tried % len(ways)])
            self._tried += 1
        else:
            self._patience = _WINDOW
        self._before = _schedule()

    def _gain(self, other: dict[str, float]) -> float | None:
        """Time of the steps by what they take the other way, of the kinds known of both; None without one."""
        steps = [(kind, times) for kind, times in self._steps.items() if kind in other]
        took = sum(len(times) * statistics.median(times) for _, times in steps)
        expected = sum(len(times) * other[kind] for kind, times in steps)
        return took / expected if expected else None

    def _take(self, way: str) -> None:
        if self._way == _SLEEP:
            self._spin()
        elif self._way == _FEWER:
            torch.set_num_threads(self._threads)
        if way == _SLEEP:
            self._sleep()
        elif way == _FEWER:
            torch.set_num_threads(self._threads - 1)
        self._way, self._steps = way, {}

    def _teams(self) -> int:
        """How many more teams it takes to have more OpenMP threads than cores, or 0 where that would be too many."""
        idle = self._threads - 1  # of a team, for its first thread is no one's but ours
        teams = max(0, len(os.sched_getaffinity(0)) - self._threads) // idle + 1 if _LINUX else 0
        return teams if teams * idle <= _MOST else 0

    def _sleep(self) -> None:
        logger.debug("other programs want the cores: threads sleep while they wait for each other")
        self._stop = threading.Event()
        for _ in range(self._teams()):
            ready = threading.Event()
            holder = threading.Thread(target=_hold_team, args=(self._threads, ready, self._stop), daemon=True)
            try:
                holder.start()
            except RuntimeError:  # the system gives no more threads: those that are there do no harm
                break
            ready.wait()
            self._holders.append(holder)

    def _spin(self) -> None:
        if self._stop is not None:
            self._stop.set()
            for holder in self._holders:
                holder.join()
            self._stop, self._holders = None, []
            logger.debug("threads spin while they wait for each other")


_LINUX = hasattr(os, "sched_getaffinity")


def _hold_team(threads: int, ready: threading.Event, stop: threading.Event) -> None:
    try:
        torch.ones(threads * _GRAIN, device="cpu")  # in as many threads, which stay this thread's until its end
    finally:
        ready.set()
    stop.wait()


def _schedule() -> tuple[int, int] | None:
    """Nanoseconds that this thread had a core, and wanted one and had none; None where the system does not say."""
    try:
        words = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
        return int(words[0]), int(words[1])
    except (OSError, ValueError, IndexError):
        return None


def _share(before: tuple[int, int], after: tuple[int, int]) -> float:
    ran, waited = (late - early for early, late in zip(before, after, strict=True))
    return waited / (ran + waited) if ran + waited > 0 else 0.0
