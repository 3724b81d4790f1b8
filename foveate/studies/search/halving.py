"""Short fits that go on where they are promising: successive halving on the runs of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from foveate.studies.comparison.run import RunResult
from foveate.studies.comparison.scheduler import Grid, Job
from foveate.studies.search.candidates import Candidate
from foveate.studies.search.results import Trial

__all__ = ["FEWER", "Halving", "rungs_of"]

FEWER = 3  # of three plans one is trained on


def rungs_of(epochs: int) -> tuple[int, ...]:
    """After how many epochs plans are left behind: a ninth, a third and all of them, each once."""
    return tuple(sorted({max(1, math.ceil(epochs / FEWER**k)) for k in range(3)}))


class Halving:
    """The runs of a search.

    Args:
        grid: which has their folders.
        job: a plan's run until an epoch.
        rungs: after how many epochs plans are judged, ascending.
    """

    def __init__(self, grid: Grid, job: Callable[[Candidate, int], Job], rungs: Sequence[int]) -> None:
        self.grid, self.job, self.rungs = grid, job, tuple(rungs)
        self._candidates: dict[str, Candidate] = {}
        self._results: dict[str, dict[int, RunResult]] = {}

    def evaluate(self, candidate: Candidate) -> float | None:
        """Train a plan until the first rung and give its accuracy in percent; None where it diverged."""
        self._run([candidate], self.rungs[0])
        return self._score(candidate, self.rungs[0])

    def halve(self, candidates: Sequence[Candidate], least: int) -> None:
        """Train all until the first rung, and of each three the best one until the next.

        Args:
            candidates: in any order.
            least: so many at least go on, where there are so many.
        """
        alive = list(candidates)
        self._run(alive, self.rungs[0])
        for before, rung in zip(self.rungs, self.rungs[1:], strict=False):
            scores = {str(one.plan): self._score(one, before) for one in alive}
            ranked = sorted(alive, key=lambda one: (-(scores[str(one.plan)] or 0.0), one.cost.macs, one.cost.params))
            ranked = [one for one in ranked if scores[str(one.plan)] is not None]
            alive = ranked[: max(least, math.ceil(len(alive) / FEWER))]
            self._run(alive, rung)

    def trials(self) -> list[Trial]:
        """What was tried."""
        found = []
        for text, results in self._results.items():
            top1 = {until: result.scores["top1"] for until, result in results.items() if not result.diverged}
            why = next((result.diverged for result in results.values() if result.diverged), None)
            candidate = self._candidates[text]
            found.append(Trial(candidate.plan, candidate.cost, top1, why))
        return found

    @property
    def seconds(self) -> float:
        """What the training of all took, in whatever processes; a run that went on counts all its parts."""
        return sum(max(result.seconds for result in results.values()) for results in self._results.values())

    def _run(self, candidates: Sequence[Candidate], until: int) -> None:
        jobs = {str(candidate.plan): self.job(candidate, until) for candidate in candidates}
        found = self.grid.complete(list(jobs.values()))
        for candidate in candidates:
            text = str(candidate.plan)
            self._candidates[text] = candidate
            self._results.setdefault(text, {})[until] = found[jobs[text].run.name]

    def _score(self, candidate: Candidate, until: int) -> float | None:
        result = self._results[str(candidate.plan)][until]
        return None if result.diverged else result.scores["top1"]
