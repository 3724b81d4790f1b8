"""Plans compared fairly: the same weights at the start, the same images in the same order, several seeds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from foveate.data.split import ImageData
from foveate.errors import FoveateError
from foveate.io import make_folder
from foveate.spec import Plan
from foveate.studies.comparison.config import BASELINE, MOST_PLANS, RUNS, Plans, Setup, labelled_plans
from foveate.studies.comparison.lr_search import Tuning, check_learning_rates, choose, tuning_data
from foveate.studies.comparison.margin import check_margin
from foveate.studies.comparison.networks.maker import Maker, Model
from foveate.studies.comparison.protocol import run_table
from foveate.studies.comparison.reading import collect, diverged_plans
from foveate.studies.comparison.results import Comparison, Row
from foveate.studies.comparison.run import Networks, RunResult
from foveate.studies.comparison.scheduler import Grid, Job
from foveate.studies.executors.joining import Executor, joined
from foveate.training.input.feature_cache import FeatureCache
from foveate.training.recipes.recipe import Recipe
from foveate.training.tasks.choose import AnyData, OpenedData, open_for_task
from foveate.training.tasks.classification import Classification

__all__ = ["BASELINE", "Comparison", "Row", "compare"]


def compare(
    model: Model,
    plans: Plans,
    data: AnyData,
    recipe: Recipe | None = None,
    seeds: int | Sequence[int] = 3,
    *,
    start: str | None = None,
    pretrained: bool = False,
    learning_rates: Sequence[float] = (),
    margin: float | None = None,
    most_plans: int = MOST_PLANS,
    output: str | os.PathLike[str] | None = None,
    runs: str | os.PathLike[str] | None = None,
    progress: bool = True,
    cache: FeatureCache | None = None,
    executor: Executor | str | None = None,
    workers: int | None = None,
) -> Comparison:
    """Train a network without attention and with each plan, for several seeds, and compare.

    For one seed every plan starts from the same shared weights, and sees the same images in the same order.

    With ``output``, the same call again goes on where it was broken off: finished runs are read, and a run that was
    running continues from its last checkpoint. Several processes, on several machines that share the folder, may
    make the same call at once; they share the runs and all get the same result. Another recipe or other data are
    other runs beside these.

    Args:
        model: a name for ``create_model``, or of a trunk for ``create_segmenter`` where the data are label maps and for
            ``create_detector`` where they are boxes; a network (copied, never changed), or a function seed -> network.
        plans: one plan or family, several, or label -> plan or family. The network without attention is always the
            first row, ``none``. What varies in a family is analysed as factors, too: ``factors`` of the result.
        data: whatever ``fit`` takes.
        recipe: of every run; its seed is replaced by each of ``seeds``.
        seeds: how many (0, 1, ...), or the seeds themselves.
        start: as in ``insert``.
        pretrained: with a model's name, start from its ImageNet weights.
        learning_rates: tried with every plan alike, with the first seed, on images held out of the training images;
            each plan is then trained with its best. Without them all plans have the recipe's.
        margin: in points of top-1, of mIoU or of mAP: also say whether each plan is worse by more than that.
        most_plans: how many plans a family may have.
        output: folder for the runs, grid.json, comparison.csv, runs.csv, timing.csv and, of families, factors.csv.
        runs: a CSV table of finished runs: those that it has are not made again, though there are no weights of them,
            and those that are made here are added. Needs ``output``, and images with one class each.
        progress: show a bar and a line for each epoch.
        cache: a frozen trunk's features, to be shared with other calls.
        executor: starts workers that share the runs through ``output``, which all of them see: anything with
            ``submit(fn, *args)``, or "processes:4", "dask://HOST:PORT", "slurm:PARTITION[,key=value]", "ray://HOST:PORT".
        workers: how many it starts; without it as many as the executor says it has. This process works, too.

    Returns:
        A row for each plan, the network without attention first. A plan of which a run diverged has none: it is named
        in ``diverged``, and the others are compared.

    Raises:
        FoveateError: what ``open_data``, ``insert`` and ``fit`` raise. Every plan is tried on the network before the
            first training step.
        Diverged: a run of the network without attention diverged, or one of each plan: its loss became NaN or infinite.
    """
    folder = make_folder(output, later=True) if output is not None else None
    if executor is not None:
        request = {
            "model": model,
            "plans": plans,
            "data": data,
            "recipe": recipe,
            "seeds": seeds,
            "start": start,
            "pretrained": pretrained,
            "learning_rates": learning_rates,
            "margin": margin,
            "most_plans": most_plans,
            "output": output,
            "runs": runs if runs is None else Path(runs).resolve(),
        }
        with joined(executor, workers, compare, request):
            return compare(**request, progress=progress, cache=cache)  # type: ignore[arg-type]  # they are its own
    recipe = recipe or Recipe()
    margin = check_margin(margin)
    chosen, rates = _seeds(seeds), check_learning_rates(learning_rates)
    opened, task = open_for_task(data)
    if runs is not None and folder is None:
        raise FoveateError(f"runs={os.fspath(runs)!r} is a table of finished runs: give output=, a folder for all runs")
    if runs is not None and task.name != Classification.name:
        raise FoveateError(f"runs={os.fspath(runs)!r}: a table of runs is for images with one class each; leave it out")
    grid = Grid(folder / RUNS if folder else None, progress=progress, cache=cache or FeatureCache(), task=task)
    classes = opened.classes if task.name == Classification.name else ()
    maker = Maker(model, pretrained, start, partial(task.create, data=opened, pretrained=pretrained), classes)
    labelled, families = labelled_plans(plans, partial(maker.resolve, recipe, chosen[0]), most_plans)
    for plan in labelled.values():  # a plan that does not fit is found before the first hour of training
        maker.build(plan, recipe, chosen[0])
    tuning = _tune(grid, maker, labelled, opened, recipe.with_(seed=chosen[0]), rates, runs) if rates else None
    jobs: dict[str, list[Job]] = {label: [] for label in labelled}
    for seed in chosen:
        for label, plan in labelled.items():
            rate = tuning.chosen[label] if tuning else recipe.learning_rate
            jobs[label].append(maker.job(label, plan, recipe.with_(seed=seed, learning_rate=rate), opened))
    names = {label: tuple(job.run.name for job in found) for label, found in jobs.items()}
    size = len(opened.train), len(opened.val)
    described = (maker.name, opened.name, opened.note, opened.licence, *size)
    setup = Setup(*described, chosen, recipe, names, tuning, margin, families, task.name, opened.classes)
    if folder:
        setup.write(make_folder(folder))
    of_seeds = [found[k] for k in range(len(chosen)) for found in jobs.values()]
    results = _complete(grid, of_seeds, opened, runs, keep=[found[0] for found in jobs.values()])
    lost = diverged_plans(setup, results)
    of_label = {label: (found[0], results[names[label][0]]) for label, found in jobs.items() if label not in lost}
    absent = [label for label, (job, result) in of_label.items() if not grid.has_model(job, result)]
    models = Networks({label: partial(grid.model, *of_job) for label, of_job in of_label.items()}, absent)
    comparison = collect(setup, results, folder, models)
    if folder:
        comparison.write_csv(folder)
    return comparison


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not found or len(set(found)) != len(found):
        raise FoveateError(f"seeds={seeds!r}: give a number of seeds, at least 1, or different seeds")
    return found


def _tune(
    grid: Grid,
    maker: Maker,
    labelled: Mapping[str, Plan | None],
    data: OpenedData,
    recipe: Recipe,
    rates: tuple[float, ...],
    runs: str | os.PathLike[str] | None,
) -> Tuning:
    """Try every learning rate with every plan, on the training images alone."""
    part = tuning_data(data, recipe.seed, grid.task)
    jobs = {
        label: [maker.job(f"tuning {label}, {rate:g}", plan, recipe.with_(learning_rate=rate), part) for rate in rates]
        for label, plan in labelled.items()
    }
    results = _complete(grid, [job for found in jobs.values() for job in found], part, runs)
    trials = {label: [results[job.run.name] for job in found] for label, found in jobs.items()}
    tuning = choose(rates, trials, part, recipe.seed, grid.measure.key)
    grid.console.print(str(tuning), highlight=False, markup=False)
    return tuning


def _complete(
    grid: Grid,
    jobs: Sequence[Job],
    data: OpenedData,
    runs: str | os.PathLike[str] | None,
    keep: Sequence[Job] = (),
) -> Mapping[str, RunResult]:
    """The results of runs that the same data judge: what a table of runs has, and the others, which are added to it."""
    if runs is None or grid.folder is None or not isinstance(data, ImageData):
        return grid.complete(jobs, keep)
    run_table.restore(runs, grid.folder, list({job.run.name: job.run for job in jobs}.values()), data.val.labels)
    results = grid.complete(jobs, keep)
    run_table.keep(runs, (run_table.row_of(job.run, results[job.run.name], len(data.classes)) for job in jobs))
    return results
