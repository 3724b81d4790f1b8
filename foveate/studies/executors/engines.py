"""Executors by name: processes on this machine, a Dask cluster, Slurm through submitit, a Ray cluster."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError, first_line, near

__all__ = ["Engine", "open_engine"]

_KINDS = ("processes", "dask", "slurm", "ray")
_FORMS = "processes:4, dask://HOST:PORT, slurm:PARTITION[,key=value] or ray://HOST:PORT"


@dataclass(frozen=True)
class Engine:
    """An executor that is open.

    Args:
        name: for messages.
        executor: with ``submit``.
        workers: how many it has, as far as it says.
    """

    name: str
    executor: Any
    workers: int


@contextmanager
def open_engine(executor: object, folder: Path) -> Iterator[Engine]:
    """An executor, opened if it is given as a text, and then closed again.

    Args:
        executor: with ``submit``, or a text.
        folder: where Slurm's files go.

    Raises:
        FoveateError: it is neither, its package is not installed, or it cannot be reached.
    """
    if not isinstance(executor, str):
        if not callable(getattr(executor, "submit", None)):
            raise FoveateError(f"executor={executor!r} has no submit(fn, *args): give one that has, or {_FORMS}")
        workers = getattr(executor, "_max_workers", None)  # of concurrent.futures
        yield Engine(type(executor).__name__, executor, workers if isinstance(workers, int) else 1)
        return
    kind, _, rest = executor.partition(":")
    if kind not in _KINDS:
        raise FoveateError(f"executor={executor!r}: there is no {kind!r}; {near(kind, _KINDS)}; write {_FORMS}")
    opened = {"processes": _processes, "dask": _dask, "slurm": _slurm, "ray": _ray}[kind]
    with opened(executor, rest.removeprefix("//"), folder) as engine:
        yield engine


class Process:
    """One process of our own. If it is killed, no other is; a pool of ``concurrent.futures`` would break."""

    def __init__(self, fn: Callable[..., object], args: tuple[object, ...]) -> None:
        self._process = multiprocessing.get_context("spawn").Process(target=fn, args=args, daemon=True)
        self._process.start()

    def done(self) -> bool:
        """Whether it has ended."""
        return not self._process.is_alive()

    def exception(self) -> Exception | None:
        """How it ended, if not well; its traceback is on stderr."""
        code = self._process.exitcode
        return RuntimeError(f"process {self._process.pid} ended with {code}") if code else None

    def cancel(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join()


class Processes:
    """An executor that starts a process for each piece of work."""

    def submit(self, fn: Callable[..., object], /, *args: object) -> Process:
        """Start ``fn(*args)`` in a new process."""
        return Process(fn, args)


@contextmanager
def _processes(text: str, count: str, _folder: Path) -> Iterator[Engine]:
    if not count.isdecimal() or int(count) < 2:
        raise FoveateError(f"executor={text!r}: write processes:N with N at least 2, this process being one of them")
    variable, threads = "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(count)))
    before = os.environ.get(variable)
    os.environ.setdefault(variable, threads)  # processes that all use all cores are slower than one after the other
    try:
        yield Engine(text, Processes(), int(count) - 1)
    finally:
        if before is None:
            os.environ.pop(variable, None)


@contextmanager
def _dask(text: str, address: str, _folder: Path) -> Iterator[Engine]:
    distributed = _package("distributed", "dask")
    try:
        client = distributed.Client(f"tcp://{address}", timeout=10, set_as_default=False)
    except Exception as error:
        raise FoveateError(f"{text} cannot be reached: {first_line(error)}") from error
    with client:
        # Each worker gets the same arguments, and Dask would take equal calls for one.
        executor = client.get_executor(pure=False, retries=3)
        yield Engine(text, executor, max(1, len(client.scheduler_info(n_workers=-1)["workers"])))


@contextmanager
def _slurm(text: str, rest: str, folder: Path) -> Iterator[Engine]:
    submitit = _package("submitit", "slurm")
    partition, *pairs = rest.split(",")
    options = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if not partition or len(options) < len(pairs):
        raise FoveateError(
            f"executor={text!r}: write slurm:PARTITION[,key=value], each key once, such as slurm:gpu,time=240,workers=8"
        )
    values = {key: int(value) if value.isdecimal() else value for key, value in options.items()}
    try:
        executor = submitit.SlurmExecutor(folder=folder / "slurm", max_num_timeout=10)
        executor.update_parameters(partition=partition, **values)
    except Exception as error:
        raise FoveateError(f"{text} cannot be used: {first_line(error)}") from error
    yield Engine(text, executor, 1)


@contextmanager
def _ray(text: str, _rest: str, _folder: Path) -> Iterator[Engine]:
    ray = _package("ray", "ray")
    ours = not ray.is_initialized()  # a program that is connected already stays so
    if ours:
        try:
            ray.init(address=text if text != "ray:" else None, log_to_driver=False)
        except Exception as error:
            raise FoveateError(f"{text} cannot be reached: {first_line(error)}") from error
    try:
        nodes = sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        yield Engine(text, _Ray(ray), max(1, nodes))
    finally:
        if ours:
            ray.shutdown()


class _Ray:
    """Ray's tasks with ``submit``."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def submit(self, fn: Callable[..., object], /, *args: object) -> _RayFuture:
        """Start ``fn(*args)`` as a task that is tried again when its worker dies."""
        return _RayFuture(self._ray, self._ray.remote(max_retries=3)(fn).remote(*args))


class _RayFuture:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def done(self) -> bool:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        return bool(ready)

    def exception(self) -> Exception | None:
        try:
            self._ray.get(self._reference)
        except Exception as error:  # noqa: BLE001 - whatever the task raised
            return error
        return None

    def cancel(self) -> None:
        self._ray.cancel(self._reference, force=True)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise FoveateError(f"{name} is not installed: pip install 'foveate[{extra}]'") from None
