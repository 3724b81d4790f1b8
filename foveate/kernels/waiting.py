"""Threads that sleep while they wait for each other, for as long as other programs want the cores.

By default GNU's OpenMP, which torch brings on Linux, lets a thread that waits spin some 300,000 times before it
sleeps: fastest where every thread has a core, and a standstill where it has not, for then those that spin keep the
cores from those that are waited for. Its manual (GOMP_SPINCOUNT) says that it spins 100 times only while a process has
more OpenMP threads than cores. A second team that does nothing therefore changes how all of them wait, and taking it
away changes it back; the number of threads that share an operation, and with it every bit of a result, stays.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["SharedCores"]

logger = logging.getLogger("foveate")

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # of the user's, which stand
_WAITED = 0.05  # share of its time in which a thread may want a core and get none before that counts as a busy machine
_WINDOW = 1.0  # seconds between two decisions
_LONGEST = 64.0  # seconds for which threads sleep before spinning is tried again
_MOST = 256  # threads of teams that do nothing
_GRAIN = 2**15  # elements that torch gives a thread at least


class SharedCores:
    """Decides again and again, while a loop computes on the CPU, whether waiting threads spin or sleep.

    They sleep where this thread waits for a core, as Linux counts it, for more than a twentieth of its time. Elsewhere
    than on Linux, with one thread, and where OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, nothing is changed. To be used
    in a ``with`` statement, by one thread.
    """

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._stop: threading.Event | None = None
        self._holders: list[threading.Thread] = []
        self._before: tuple[int, int] | None = None
        self._next = 0.0
        self._patience = _WINDOW

    @property
    def sleeping(self) -> bool:
        """Whether threads that wait sleep by this object's decision."""
        return self._stop is not None

    def __enter__(self) -> SharedCores:
        if self._threads > 1 and self._teams() and not any(name in os.environ for name in _SETTINGS):
            self._before = _schedule()
        if self._before is not None:
            self._next = time.perf_counter() + _WINDOW
            if _share((0, 0), self._before) > _WAITED:  # since the thread's start
                self._sleep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._spin()
        self._before = None

    def look(self) -> None:
        """Decide anew where the last decision is old enough; a call takes no time that could be noticed."""
        if self._before is None or time.perf_counter() < self._next:
            return
        now = _schedule()
        if now is None:
            return
        busy = _share(self._before, now) > _WAITED
        if busy and not self.sleeping:
            self._sleep()
            self._patience = min(2 * self._patience, _LONGEST)
        elif self.sleeping and not busy:
            self._spin()  # a trial: asleep, a thread asks for less and may get all of it
        elif not busy:
            self._patience = _WINDOW
        self._before = _schedule()
        self._next = time.perf_counter() + (self._patience if self.sleeping else _WINDOW)

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
