"""Would a search have found the best plan? The real successive halving, replayed on results that are there already.

    python benchmarks/search_replay.py --runs docs/reports/evidence_runs.csv --protocol benchmarks/evidence/where.yaml
    python benchmarks/search_replay.py --rho --protocol benchmarks/evidence/replacing.yaml
    python benchmarks/search_replay.py --simulated

The truth is a plan's mean accuracy over the seeds that the search did not use, on images by which the search did not
judge. A search has a quarter of the training that all plans together had: it draws plans, and ``Halving``, the code of
``fv.search``, leaves them behind. At the same cost stand random search, which trains as many of the drawn plans to the
end as that pays for, and "last blocks", which trains the plans nearest to the network's end. Each takes the plan that
its own images call best. It is right if that plan's truth is within one standard error of the best. Of ten repetitions
it should be right in eight.

"All trained" is no search: it trains every plan to the end, at four times that cost, with the one seed of a search. It
is what a search of one seed could find at best.

Whether there is a truth at all is said first: Spearman's rho between the plans' order in two halves of the seeds, the
mean over all halvings. Below 0.8 the differences between plans are mostly noise. ``--rho`` says this alone, which needs
no pauses, of the seeds of a protocol that are finished. Beside it stands the share of the plans in the variance of
single runs, by which the rows of ``--simulated`` are named (the intraclass correlation: Shrout and Fleiss,
Psychological Bulletin 86, 1979; seeds are blocks, so what a seed does to all plans alike is not in it).

``--simulated`` has no runs: effects of 24 plans and of seeds are drawn, so that the rho of single seeds is what the row
says, and scores after a ninth and a third of the epochs have more noise (three times and one and a half times the
standard deviation of the end).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

import foveate as fv
from foveate.io import markdown_table
from foveate.studies.comparison.protocol.run_table import read_table, were_right
from foveate.studies.comparison.run import Run, RunResult
from foveate.studies.comparison.scheduler import Job
from foveate.studies.search.candidates import Candidate
from foveate.studies.search.halving import FEWER, Halving, rungs_of

JUDGES = 1 / 3  # of the images judge the search, the others are the truth
SHARE = 1 / 4  # of the training that all plans had
REPETITIONS = 10
FEWEST = 3  # seeds: one for the search, two for a standard error of the truth
Scores = Callable[[int, int, int], float]  # plan, seed, epochs -> accuracy by the search's images


@dataclass(frozen=True)
class Truth:
    """What a replay needs.

    Args:
        plans: their texts, those nearest to the network's end last.
        final: (plans, seeds) accuracy in percent by the images of the truth.
        judged: accuracy in percent by those of the search.
        epochs: of a whole run.
    """

    plans: tuple[str, ...]
    final: np.ndarray
    judged: Scores
    epochs: int


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation."""
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def halves_rho(final: np.ndarray) -> float:
    """Mean rho between the plans' means over two disjoint halves of the seeds, as large as possible and equal."""
    seeds = range(final.shape[1])
    size = final.shape[1] // 2
    found = [
        spearman(final[:, list(one)].mean(1), final[:, list(other)].mean(1))
        for one in itertools.combinations(seeds, size)
        for other in itertools.combinations([s for s in seeds if s not in one], size)
        if one < other
    ]
    return float(np.mean(found))


def plan_share(final: np.ndarray) -> float:
    """The plans' share in the variance of single runs, from the plans x seeds analysis of variance; at least 0."""
    plans, seeds = final.shape
    means = final.mean(1)
    between = seeds * means.var(ddof=1)
    rest = final - means[:, None] - final.mean(0) + final.mean()
    within = np.square(rest).sum() / ((plans - 1) * (seeds - 1))
    return float(max(0.0, (between - within) / (between + (seeds - 1) * within)))


def results(file: str, protocol: fv.Protocol, plans: Sequence[str]) -> dict[tuple[str, int, int], dict[str, str]]:
    """By plan, seed and epochs what a table has of a protocol: the same plan with other data is another run."""
    of, found = f"{protocol.model} pretrained={protocol.pretrained}", {}
    wanted = {}
    for plan, seed in itertools.product(plans, range(protocol.seeds)):
        start = None if plan == "none" else protocol.start
        run = Run(of, plan, start, protocol.recipe.with_(seed=seed), protocol.fingerprint)
        wanted[run.name] = plan, seed
    for (name, epochs), row in read_table(file).items():
        if name in wanted:
            found[*wanted[name], int(epochs)] = row
    return found


def finished(file: str, protocol: fv.Protocol) -> tuple[list[str], np.ndarray]:
    """The plans of a protocol, none among them, and their accuracies with the seeds that all of them have."""
    plans = ["none", *(str(plan) for text in protocol.plans for plan in fv.Family.parse(text))]
    by, last = results(file, protocol, plans), protocol.recipe.epochs
    recipe = {(plan, seed): row for (plan, seed, epochs), row in by.items() if epochs == last}
    seeds = [seed for seed in range(protocol.seeds) if all((plan, seed) in recipe for plan in plans)]
    found = [[100 * float(were_right(recipe[plan, seed]).double().mean()) for seed in seeds] for plan in plans]
    return plans, np.array(found)


class Replay:
    """Stands where ``Halving`` has its grid: a run is looked up, not trained."""

    def __init__(self, truth: Truth, seed: int) -> None:
        self.truth, self.seed, self.epochs = truth, seed, 0
        self._trained: dict[str, int] = {}

    def complete(self, jobs: Sequence[Job]) -> Mapping[str, RunResult]:
        """Results by the run's name; counts the epochs that were new."""
        found = {}
        for job in jobs:
            until, plan = int(job.until_epoch or self.truth.epochs), job.run.plan
            self.epochs += max(0, until - self._trained.get(plan, 0))
            self._trained[plan] = max(until, self._trained.get(plan, 0))
            score = self.truth.judged(self.truth.plans.index(plan), self.seed, until)
            none = torch.empty(0, dtype=torch.int32)
            found[job.run.name] = RunResult({"top1": score}, fv.Cost(0, 0, 0), none, none, 0.0, 0.0, {})
        return found


def halving_epochs(count: int, rungs: Sequence[int]) -> int:
    """What ``Halving`` trains of so many plans, where one at least goes on."""
    total, alive, before = 0, count, 0
    for at, rung in enumerate(rungs):
        alive = alive if at == 0 else max(1, -(-alive // FEWER))
        total, before = total + alive * (rung - before), rung
    return total


def search(truth: Truth, seed: int, drawn: Sequence[int]) -> tuple[int, int]:
    """The plan that halving ends with, and the epochs that it took."""
    rungs = rungs_of(truth.epochs)
    budget = int(SHARE * len(truth.plans) * truth.epochs)
    count = max(n for n in range(1, len(drawn) + 1) if halving_epochs(n, rungs) <= budget)
    grid = Replay(truth, seed)
    recipe = fv.Recipe(epochs=truth.epochs, seed=seed)

    def job(candidate: Candidate, until: int) -> Job:
        run = Run("replayed", candidate.text, None, recipe, "")
        nothing: Any = None  # is built or trained
        return Job(run, candidate.text, nothing, build=nothing, plain=nothing, until_epoch=until)

    halving = Halving(grid, job, rungs)  # type: ignore[arg-type]  # it needs no more of a grid
    halving.halve([Named(truth.plans[plan], fv.Cost(0, 0, 0)) for plan in drawn[:count]], 1)  # type: ignore[list-item]  # see Named
    best = min(halving.trials(), key=lambda trial: trial.rank)
    return truth.plans.index(str(best.plan)), grid.epochs


@dataclass(frozen=True)
class Named:
    """A candidate that is only its text: here costs decide nothing."""

    text: str
    cost: fv.Cost

    @property
    def plan(self) -> str:
        """The text, in a plan's place."""
        return self.text


def replay(truth: Truth, repetitions: int, seed: int = 0) -> dict[str, float]:
    """How often each way is right, and what the first one cost."""
    rng = np.random.default_rng(seed)
    right = dict.fromkeys(("halving", "random search", "last blocks", "all trained"), 0)
    plans, seeds = truth.final.shape
    cost = 0.0
    for repetition in range(repetitions):
        own = repetition % seeds
        drawn = [int(n) for n in rng.permutation(plans)]
        others = np.delete(truth.final, own, axis=1)
        means = others.mean(1)
        best = int(means.argmax())
        least = means[best] - others[best].std(ddof=1) / np.sqrt(seeds - 1)
        whole = int(SHARE * plans)
        taken = {"halving": search(truth, own, drawn)}
        ends = list(range(plans - whole, plans))
        for name, some in (("random search", drawn[:whole]), ("last blocks", ends), ("all trained", drawn)):
            taken[name] = max(some, key=lambda n: truth.judged(n, own, truth.epochs)), len(some) * truth.epochs
        for name, (plan, _) in taken.items():
            right[name] += bool(means[plan] >= least)
        cost += taken["halving"][1] / (plans * truth.epochs) / repetitions
    return {**{name: count / repetitions for name, count in right.items()}, "share of the training": cost}


def from_runs(file: str, protocol: fv.Protocol) -> Truth:
    """The truth in a table of runs.

    Raises:
        FoveateError: too few seeds have all runs and the results of their pauses.
    """
    families = [fv.Family.parse(text) for text in protocol.plans]
    plans = sorted((str(plan) for family in families for plan in family), key=lambda text: text.rpartition("blocks")[2])

    by, epochs = results(file, protocol, plans), protocol.recipe.epochs

    def keys(seed: int) -> list[tuple[str, int, int]]:
        return [(plan, seed, rung) for plan in plans for rung in rungs_of(epochs)]

    seeds = [seed for seed in range(protocol.seeds) if all(key in by for key in keys(seed))]
    if len(seeds) < FEWEST:
        missing = [key for seed in range(FEWEST) for key in keys(seed) if key not in by]
        raise fv.FoveateError(
            f"{file} has all results of {len(seeds)} seeds, and {FEWEST} are needed: {len(missing)} are missing, the "
            f"first one of {missing[0][0]}, seed {missing[0][1]}, {missing[0][2]} epochs: benchmarks/evidence/run.py "
            "--pause makes them"
        )
    right = {key: were_right(by[key]).numpy() for seed in seeds for key in keys(seed)}
    judges = np.random.default_rng(0).random(len(next(iter(right.values())))) < JUDGES
    final = np.array([[100 * right[plan, seed, epochs][~judges].mean() for seed in seeds] for plan in plans])
    return Truth(tuple(plans), final, lambda n, s, e: 100 * float(right[plans[n], seeds[s], e][judges].mean()), epochs)


def simulated(rho: float, rng: np.random.Generator, plans: int = 24, seeds: int = 5, epochs: int = 9) -> Truth:
    """Drawn effects: the variance between plans is the share ``rho`` of that of a single run."""
    effect = rng.normal(0, np.sqrt(rho), plans)
    noise = {epochs: 1.0, epochs // 3: 1.5, 1: 3.0}
    final = effect[:, None] + rng.normal(0, np.sqrt(1 - rho), (plans, seeds))
    # The search judges the same runs by other images: here it sees what the truth sees, and noise before the end.
    scores = {
        until: final + rng.normal(0, np.sqrt(max(0.0, (1 - rho) * (times**2 - 1))), (plans, seeds))
        for until, times in noise.items()
    }
    return Truth(tuple(f"plan {n}" for n in range(plans)), final, lambda n, s, e: float(scores[e][n, s]), epochs)


def table(rows: Sequence[tuple[str, float, Mapping[str, float]]]) -> None:
    """Print results."""
    head = ["", "rho of halves", "halving", "random search", "last blocks", "all trained", "share of the training"]
    print(
        *markdown_table(head, [[name, f"{rho:.2f}", *(f"{v:.2f}" for v in of.values())] for name, rho, of in rows]),
        sep="\n",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="docs/reports/evidence_runs.csv")
    parser.add_argument("--protocol", default="benchmarks/evidence/where.yaml")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--rho", action="store_true", help="only whether there is a truth")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--truths", type=int, default=200, help="how many truths are drawn for a row")
    asked = parser.parse_args()
    if asked.rho:
        plans, final = finished(asked.runs, fv.read_protocol(asked.protocol))
        if final.ndim < 2 or final.shape[1] < 2:
            raise SystemExit(
                f"search_replay: {asked.runs} has no two seeds of all {len(plans)} plans of {asked.protocol}"
            )
        share, rho = plan_share(final), halves_rho(final)
        print(f"{len(plans)} plans, {final.shape[1]} seeds: rho of halves {rho:.2f}, share of the plans {share:.2f}")
        return
    if not asked.simulated:
        try:
            truth = from_runs(asked.runs, fv.read_protocol(asked.protocol))
        except fv.FoveateError as error:
            raise SystemExit(f"search_replay: {error}") from None
        table([("the runs", halves_rho(truth.final), replay(truth, asked.repetitions))])
        return
    rows = []
    for rho in (0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        rng = np.random.default_rng(round(100 * rho))
        truths = [simulated(rho, rng) for _ in range(asked.truths)]
        found = [replay(truth, REPETITIONS, n) for n, truth in enumerate(truths)]
        means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        rows.append(
            (f"rho of single seeds {rho:g}", float(np.mean([halves_rho(truth.final) for truth in truths])), means)
        )
    table(rows)


if __name__ == "__main__":
    main()
