"""A search in a family of plans under a budget: search proposes, compare decides."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from torch import nn

from foveate.accounting.latency import latency
from foveate.data import ImageData, open_data
from foveate.data.detection import DetectionData, find_detection
from foveate.data.segmentation import SegmentationData, find_segmentation
from foveate.errors import FoveateError, near
from foveate.families.family import Family
from foveate.io import make_folder
from foveate.preserve import preserve_state
from foveate.spec import Plan
from foveate.studies.comparison.compare import compare
from foveate.studies.comparison.lr_search import tuning_data
from foveate.studies.comparison.networks.maker import Maker
from foveate.studies.comparison.scheduler import Grid, Job
from foveate.studies.executors.joining import Executor, joined
from foveate.studies.search.candidates import Candidate, Candidates
from foveate.studies.search.costs import Budget, CostTable, read_budget
from foveate.studies.search.halving import Halving, rungs_of
from foveate.studies.search.proposals import default_storage, propose
from foveate.studies.search.results import Search, Trial
from foveate.surgery.families import resolve_family
from foveate.training.classifier import adapt
from foveate.training.input.feature_cache import FeatureCache
from foveate.training.recipes.recipe import Recipe

__all__ = ["search"]

SAMPLERS = ("tpe", "random")
_LATENCY_ROUNDS = 30


def search(
    model: str | nn.Module | Callable[[int], nn.Module],
    family: str | Plan | Family,
    data: str | os.PathLike[str] | ImageData,
    recipe: Recipe | None = None,
    budget: Mapping[str, str | float] | None = None,
    *,
    trials: int = 24,
    finalists: int = 3,
    seeds: int = 3,
    sampler: str = "tpe",
    storage: str | None = None,
    start: str | None = None,
    pretrained: bool = False,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    cache: FeatureCache | None = None,
    executor: Executor | str | None = None,
    workers: int | None = None,
) -> Search:
    """Look for the best plans of a family under a budget, then compare these with the network without attention.

    Parameters and multiply-adds of every plan come from a table, before anything is trained. Plans within the budget
    are trained on four fifths of the training images and judged by the rest: all of them if they are not more than
    ``trials``, else those that TPE proposes. They train for a part of the recipe's epochs; of three, the best one goes
    on, from where it paused, until the recipe's end (successive halving: Jamieson and Talwalkar, Non-stochastic Best
    Arm Identification and Hyperparameter Optimization, AISTATS 2016). The best then go through ``compare``, with all
    training images and other seeds, so that the noise by which a plan was chosen is not in its result.

    With ``output``, the same call again goes on where it was broken off, and several processes may make the same call
    at once, as with ``compare``. Where the recipe freezes a trunk, its features are computed once for all trials.

    Args:
        model: as in ``compare``.
        family: the notation, such as ``"ulsam(groups=1|4) replacing any of block:replaceable"``.
        data: whatever ``open_data`` takes.
        recipe: of every trial and of the comparison; its seed is that of the trials, and the comparison's are the next.
        budget: "parameters", "macs" or "latency" -> at most so many, as a number or as a text such as ``"2.5M"``, or
            ``"-15%"`` relative to the network without a plan. Latency, always relative, is measured for the best alone.
        trials: how many plans are tried at most.
        finalists: how many are compared.
        seeds: of the comparison; 0: no comparison.
        sampler: "tpe" (of the extra ``search``) or "random", for more plans than trials.
        storage: of Optuna, a URL for SQLAlchemy; without it a SQLite file in ``output``.
        start: as in ``insert``.
        pretrained: as in ``compare``.
        output: folder for search.csv, the trials, the study and the comparison.
        progress: show a bar and a line for each epoch.
        cache: a frozen trunk's features, to be shared with other calls.
        executor: as in ``compare``.
        workers: as in ``compare``.

    Returns:
        The trials, the front of accuracy and cost, the finalists and their comparison. ``best.plan`` is the plan.

    Raises:
        FoveateError: what ``compare`` raises; no plan fits the network or keeps the budget; or Optuna is missing.
    """
    folder = make_folder(output, later=True) if output is not None else None
    if executor is not None:
        request = {
            "model": model,
            "family": family,
            "data": data,
            "recipe": recipe,
            "budget": budget,
            "trials": trials,
            "finalists": finalists,
            "seeds": seeds,
            "sampler": sampler,
            "storage": storage,
            "start": start,
            "pretrained": pretrained,
            "output": output,
        }
        with joined(executor, workers, search, request):
            return search(**request, progress=progress, cache=cache)  # type: ignore[arg-type]  # they are its own
    began, recipe = time.perf_counter(), recipe or Recipe()
    _check(recipe, trials, finalists, seeds, sampler)
    maps = isinstance(data, SegmentationData) or find_segmentation(data)
    if maps or isinstance(data, DetectionData) or find_detection(data):
        raise FoveateError(
            f"search judges plans by the class of each image, and this data has {'label maps' if maps else 'boxes'}: "
            "compare takes them, with plans or with the whole family"
        )
    data = open_data(data)
    maker = Maker(model, pretrained, start, classes=data.classes)
    plain = maker.build(None, recipe, recipe.seed)
    named = resolve_family(plain, family, recipe.image_size)
    with preserve_state():
        adapt(plain, data.classes, recipe)  # costs are those of the networks that are trained
    table = CostTable(plain, recipe.image_size, start)
    limits = read_budget(budget, table.baseline)
    candidates = Candidates(named, table, limits)
    part = tuning_data(data, recipe.seed)
    with ExitStack() as stack:
        kept = make_folder(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="foveate-search-")))
        shared = cache or FeatureCache()
        grid = Grid(kept / "trials", progress=progress, cache=shared)
        halving = Halving(grid, partial(_job, maker, recipe, part), rungs_of(recipe.epochs))
        few = candidates.listed is not None and len(candidates.listed) <= trials
        if few or sampler == "random":
            chosen = candidates.draw(trials, recipe.seed)
        else:
            heads = [head for each in named.placements for head in each.heads if head is not None]
            name = _study_name(maker, recipe, part, maker.code(heads, recipe), named, limits)
            url = default_storage(folder) if storage is None else storage
            chosen = propose(candidates, halving.evaluate, trials, name=name, storage=url, seed=recipe.seed)
        halving.halve(chosen, finalists)
        tried = sorted(halving.trials(), key=lambda trial: trial.rank)
        known = candidates.listed is not None
        found = Search(
            str(named),
            limits,
            table.baseline,
            tuple(tried),
            (),
            None,
            (named.size, candidates.unfit if known else None, candidates.over if known else None),
            time.perf_counter() - began,
            halving.seconds,
            folder,
        )
        _keep(found)  # what was tried is there, whatever becomes of the rest
        build, size = partial(maker.build, recipe=recipe, seed=recipe.seed), recipe.image_size
        measured, best = _survivors(tried, finalists, limits, build, size)
        trials_timed = tuple(measured.get(str(trial.plan), trial) for trial in tried)
        found = replace(found, trials=trials_timed, finalists=tuple(trial.plan for trial in best))
        if seeds and best:
            _keep(found)
            comparison = compare(
                model,
                [trial.plan for trial in best],
                data,
                recipe,
                range(recipe.seed + 1, recipe.seed + 1 + seeds),
                start=start,
                pretrained=pretrained,
                output=folder and folder / "comparison",
                progress=progress,
                cache=shared,
            )
            trained = found.training_seconds + sum(sum(row.seconds) for row in comparison.rows)
            found = replace(found, comparison=comparison, training_seconds=trained)
    found = replace(found, seconds=time.perf_counter() - began)
    _keep(found)
    return found


def _keep(found: Search) -> None:
    """Write the table of trials into the search's folder."""
    if found.folder is not None:
        found.to_csv(found.folder / "search.csv")


def _check(recipe: Recipe, trials: int, finalists: int, seeds: int, sampler: str) -> None:
    if sampler not in SAMPLERS:
        raise FoveateError(f"sampler={sampler!r} does not exist; {near(sampler, SAMPLERS)}")
    if recipe.epochs < 1:
        raise FoveateError("a search trains each plan: the recipe needs at least one epoch")
    for name, value, least in (("trials", trials, 1), ("finalists", finalists, 1), ("seeds", seeds, 0)):
        if value < least:
            raise FoveateError(f"{name}={value}: at least {least}")


def _job(maker: Maker, recipe: Recipe, part: ImageData, candidate: Candidate, until: int) -> Job:
    job = maker.job(f"{candidate.plan}, {until} of {recipe.epochs} epochs", candidate.plan, recipe, part)
    return replace(job, until_epoch=until, cost=candidate.cost)


def _study_name(maker: Maker, recipe: Recipe, part: ImageData, code: str | None, *others: object) -> str:
    """Another network, recipe, data, code, family or budget are another study in the same storage."""
    run = replace(maker.job("", None, recipe, part).run, code=code).identity
    digest = hashlib.sha256(repr((run, maker.start, *map(str, others))).encode()).hexdigest()
    return f"foveate-{digest[:16]}"


def _survivors(
    tried: Sequence[Trial], count: int, budget: Budget, build: Callable[[Plan], nn.Module], size: int | None
) -> tuple[dict[str, Trial], list[Trial]]:
    """The best that did not diverge and keep the budget of latency, and all that were timed, by plan."""
    measured: dict[str, Trial] = {}
    best: list[Trial] = []
    for trial in tried:
        if len(best) == count:
            break
        if trial.score is None:  # it diverged
            continue
        if budget.latency is not None:
            timing = latency(build(trial.plan), size, rounds=_LATENCY_ROUNDS, memory=False).timings[0]
            trial = replace(trial, latency=timing.ratio.median if timing.ratio else None)
            measured[str(trial.plan)] = trial
            if trial.latency is None or trial.latency > budget.latency:
                continue
        best.append(trial)
    if not best and measured:
        fastest = min(measured.values(), key=lambda trial: trial.latency or math.inf)
        raise FoveateError(
            f"no plan keeps the budget of latency ({budget.latency:.3g} times the time without a plan): the fastest of "
            f"{len(measured)} takes {fastest.latency:.3g} times as long: '{fastest.plan}'"
        )
    return measured, best
