"""Other processes on this machine that share the runs of a command."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import foveate as fv
from foveate.cli.options import say
from foveate.cli.process.allocator import keep_freed_memory
from foveate.errors import FoveateError

__all__ = ["check_jobs", "helpers"]


def check_jobs(jobs: int) -> None:
    """Share the cores among so many processes; before torch is imported.

    Raises:
        FoveateError: there is not at least one.
    """
    if jobs < 1:
        raise FoveateError(f"--jobs {jobs}: at least 1")
    if jobs > 1:  # processes that all use all cores are slower than one after the other
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))


@contextmanager
def helpers(count: int, verb: str, request: dict[str, Any]) -> Iterator[None]:
    """Processes that make the same call, ``fv.compare`` or ``fv.search``; they end with this one."""
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_help, args=(verb, request)) for _ in range(count)]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _help(verb: str, request: dict[str, Any]) -> None:
    keep_freed_memory()
    try:
        getattr(fv, verb)(**request, progress=False)
    except FoveateError as error:
        say(f"foveate: a helper stopped: {error}")
    except KeyboardInterrupt:
        return  # the process that started it says so
