"""A grid of runs that can be broken off, continued, and shared.

A finished run is read, never run again. A run that was broken off goes on from its last checkpoint. Several processes,
on one machine or several, may work on one folder at a time: each run is locked by one of them (``lock``), and a process
that finds all the rest locked waits for the others. At the end each has all results.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

from foveate import __version__
from foveate.accounting.cost import Cost, cost
from foveate.errors import FoveateError
from foveate.preserve import preserve_state
from foveate.studies.comparison.lock import RunLocks
from foveate.studies.comparison.measure import measure_of
from foveate.studies.comparison.run import Run, RunResult, read_result, scores_of, write_result
from foveate.surgery.saving.checkpoint import load
from foveate.training.fit import fit
from foveate.training.input.feature_cache import FeatureCache
from foveate.training.metrics import Diverged
from foveate.training.speed.automatic import runs_to_come
from foveate.training.tasks.choose import OpenedData
from foveate.training.tasks.classification import Classification
from foveate.training.tasks.task import Task

__all__ = ["Grid", "Job", "made_with"]

_MODEL = "last"  # what ``fit`` writes of a trained network, in the run's folder
_PATIENCE = 2.0  # seconds between two looks at the runs of others


@dataclass(frozen=True)
class Job:
    """A run, and how it is done.

    Args:
        run: what it is.
        label: what it is called in messages.
        data: what it trains on.
        build: makes the network with its plan, anew at each call and always the same.
        plain: makes the same network without its plan.
        until_epoch: pause after so many of the recipe's epochs; a later job of the same run goes on from there.
        cost: of the network, where it is known; else it is counted.
    """

    run: Run
    label: str
    data: OpenedData
    build: Callable[[], nn.Module]
    plain: Callable[[], nn.Module]
    until_epoch: int | None = None
    cost: Cost | None = None


class Grid:
    """Runs in a folder, or in memory.

    Args:
        folder: holds a folder for each run; None keeps nothing.
        progress: show a bar and a line for each epoch, and the run in progress.
        cache: of prepared images and features, for all runs.
        task: what the networks are trained for; classification where it is not said.
    """

    def __init__(self, folder: Path | None, *, progress: bool, cache: FeatureCache, task: Task | None = None) -> None:
        self.folder, self.progress, self.cache = folder, progress, cache
        self.task: Task = task or Classification()
        self.measure = measure_of(self.task.name)
        self.console = Console(stderr=True, quiet=not progress)
        self.kept: dict[str, nn.Module] = {}
        self._locks = RunLocks()

    def place(self, run: Run) -> Path | None:
        """A run's folder."""
        return self.folder / run.name if self.folder else None

    def complete(self, jobs: Sequence[Job], keep: Sequence[Job] = ()) -> Mapping[str, RunResult]:
        """Do what is left of some runs, and wait for those that other processes do.

        Args:
            jobs: all of them, in the order in which they are tried.
            keep: those whose trained network is kept in ``self.kept``, by the run's name, where it is trained here.

        Returns:
            By the run's name, its result.

        Raises:
            FoveateError: what ``fit`` raises, or a result is damaged. A run that diverges is a result.
        """
        found: dict[str, RunResult] = {}
        wanted = {job.run.name for job in keep}
        shown = False
        while len(found) < len({job.run.name for job in jobs}):
            before = len(found)
            for number, job in enumerate(jobs, 1):
                if job.run.name not in found:
                    same = {other.run.name for other in jobs if other.run.plan == job.run.plan}
                    with runs_to_come(len(same - found.keys())):
                        result = self.try_one(job, f"run {number} of {len(jobs)}", job.run.name in wanted)
                    found |= {job.run.name: result} if result else {}
            if len(found) == before:
                if not shown:
                    self._show_waiting(job for job in jobs if job.run.name not in found)
                    shown = True
                time.sleep(_PATIENCE)
        return found

    def has_model(self, job: Job, result: RunResult) -> bool:
        """Whether the trained network of a finished run is there: a row of a table of runs has none."""
        untrained = not job.run.recipe.epochs  # it can be built again
        return (
            untrained or job.run.name in self.kept or (result.folder is not None and (result.folder / _MODEL).is_dir())
        )

    def model(self, job: Job, result: RunResult) -> nn.Module:
        """The trained network of a finished run.

        Raises:
            FoveateError: the folder that ``fit`` wrote is gone or damaged.
        """
        if job.run.name not in self.kept:
            recipe = job.run.recipe
            if recipe.epochs:
                if result.folder is None or not self.has_model(job, result):
                    raise FoveateError(f"the trained network of {job.label} is not in {self.place(job.run)} any more")
                network = job.plain()  # load inserts the plan
                with preserve_state():
                    # the classifier that the weights are for
                    self.task.adapt(network, job.data, recipe, lambda _: None)
                load(result.folder / _MODEL, network)
            else:  # nothing was trained or written
                network = job.build()
                fit(network, job.data, recipe, progress=False, cache=self.cache)
            self.kept[job.run.name] = network
        return self.kept[job.run.name]

    def try_one(self, job: Job, number: str = "run", keep: bool = False) -> RunResult | None:
        """A run's result, read or made; None while another process works on it.

        Raises:
            FoveateError: as ``complete``.
        """
        place = self.place(job.run)
        if place is None:
            return self._train(job, None, number, keep)
        result = read_result(place, job.until_epoch)
        if result is not None:
            return result
        lock = self._locks.take(place)
        if lock is None:
            return None
        with lock:
            result = read_result(
                place, job.until_epoch
            )  # it may have been finished between the first look and the lock
            if result is None:
                result = self._train(job, _attempt(place, lock.number), number, keep)
                write_result(place, job.run, result, job.until_epoch)
        return result

    def _train(self, job: Job, output: Path | None, number: str, keep: bool) -> RunResult:
        self.console.rule(f"{number}: {escape(job.label)}, seed {job.run.recipe.seed}", align="left", style="dim")
        network, recipe = job.build(), job.run.recipe
        went_on = output is not None and output.exists()
        try:
            done = fit(
                network,
                job.data,
                recipe,
                output=output,
                resume=went_on,
                until_epoch=job.until_epoch,
                progress=self.progress,
                cache=self.cache,
            )
        except Diverged as error:
            none = torch.empty(0, dtype=torch.int32)
            counted = job.cost or cost(network, recipe.image_size)
            return RunResult({}, counted, none, none, 0.0, 0.0, made_with(), str(error), output)
        if keep:
            self.kept[job.run.name] = network
        found = done.evaluation
        return RunResult(
            scores_of(found, self.measure),
            job.cost or cost(network, recipe.image_size),
            *self.measure.outputs(found),
            done.seconds,
            done.images_per_second,
            made_with() | ({"compile": done.chosen["compile"] or "off"} if recipe.compile and done.chosen else {}),
            folder=output,
        )

    def _show_waiting(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            place = self.place(job.run)
            holder = self._locks.holder(place) if place else None
            self.console.print(
                f"waiting for {job.label}, seed {job.run.recipe.seed}: {holder}", highlight=False, markup=False
            )


def _attempt(place: Path, number: int) -> Path:
    """Where ``fit`` writes under a lock; what an earlier holder left is moved there.

    The move takes the folder away from whoever wrote there and was only asleep: it cannot write into ours.
    """
    here = place / f"attempt.{number}"
    earlier = [path for path in place.glob("attempt.*") if path.suffix[1:].isdigit()]
    if earlier and not here.exists():
        max(earlier, key=lambda path: int(path.suffix[1:])).rename(here)
    return here


def made_with() -> dict[str, str]:
    """Versions, machine and threads: what the last bits of a result depend on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "foveate": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }
