"""Workers that join a call: each makes the same one on the same folder, and they share its runs.

An executor only has to start them. It schedules, and tries again where it can; which runs are left, who works on each,
and what a killed worker had begun, says the folder (``comparison.lock``). The process that made the call works, too: if
every worker is lost, it does the rest.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from foveate.data.opening import is_by_name
from foveate.errors import FoveateError, first_line
from foveate.studies.executors.engines import Engine, open_engine

__all__ = ["Executor", "joined"]

logger = logging.getLogger("foveate")


class Executor(Protocol):
    """Anything that starts a function elsewhere, such as a ``concurrent.futures.Executor`` or submitit's."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Start ``fn(*args)``. What is returned may have ``done``, ``exception`` and ``cancel``."""


@contextmanager
def joined(
    executor: Executor | str | None,
    workers: int | None,
    call: Callable[..., object],
    request: Mapping[str, object],
) -> Iterator[None]:
    """Let workers make a call while this process makes it, too. They are cancelled when this one is through.

    Args:
        executor: with ``submit``, or a text such as "processes:4"; None: nobody joins.
        workers: how many; without it what the executor says of itself, or 1.
        call: ``compare`` or ``search``.
        request: its arguments by name.

    Raises:
        FoveateError: there is no output folder, or the executor cannot be opened or takes no work.
    """
    if executor is None:
        yield
        return
    if request.get("output") is None:
        raise FoveateError("an executor needs output=, a folder that all workers see: the runs are shared through it")
    if workers is not None and workers < 1:
        raise FoveateError(f"workers={workers}: at least 1")
    whole = {**request, "output": _absolute(request["output"]), "data": _absolute(request["data"]), "progress": False}
    with open_engine(executor, Path(str(whole["output"]))) as engine:
        count = workers or engine.workers
        futures = _submit(engine, count, call, whole)
        try:
            yield
        finally:
            _end(futures)


def _absolute(place: object) -> object:
    """A path that exists, from the root: workers may stand elsewhere. Anything else as it is."""
    if is_by_name(place):
        return place
    if isinstance(place, os.PathLike) or (isinstance(place, str) and Path(place).exists()):
        return str(Path(place).resolve())
    return place


def _submit(engine: Engine, count: int, call: Callable[..., object], request: Mapping[str, object]) -> list[Any]:
    try:
        return [engine.executor.submit(_work, call, dict(request)) for _ in range(count)]
    except Exception as error:
        raise FoveateError(f"{engine.name} takes no work: {first_line(error)}") from error


def _work(call: Callable[..., object], request: Mapping[str, object]) -> str:
    """What a worker does; the runs are in the folder, so only its machine's name goes back."""
    call(**request)
    return platform.node()


def _end(futures: list[Any]) -> None:
    """Say what went wrong with workers, and cancel those that still run or wait."""
    for future in futures:
        with suppress(Exception):  # an executor that broke may say nothing of its work
            if future.done():
                if (error := future.exception()) is not None:
                    logger.warning("a worker was lost, and the others did its work: %s", first_line(error))
            else:
                future.cancel()
