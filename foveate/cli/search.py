"""The command ``foveate search``."""

from __future__ import annotations

import json as json_format
import shlex
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

import foveate as fv
from foveate.cli.options import (
    DataOptions,
    NetworkOptions,
    check_names,
    open_images,
    open_network,
    say,
)
from foveate.cli.process.given import as_words, by_name, is_folder
from foveate.cli.process.helpers import check_jobs, helpers
from foveate.cli.process.stopping import after_search, when_stopped
from foveate.cli.train import RECIPE_GROUP, RecipeOptions, chosen_recipe

__all__ = ["search"]


def search(
    data: str,
    *,
    family: str,
    network: NetworkOptions | None = None,
    images: DataOptions | None = None,
    recipe: str | None = None,
    fields: Annotated[RecipeOptions | None, Parameter(name="*", group=RECIPE_GROUP)] = None,
    budget: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    trials: int = 24,
    finalists: int = 3,
    seeds: int = 3,
    sampler: Literal["tpe", "random"] = "tpe",
    storage: str | None = None,
    output: Path = Path("runs/search"),
    jobs: int = 1,
    on: str | None = None,
    workers: Annotated[int | None, Parameter(name="--on-workers")] = None,  # a recipe's --workers load images
    page: Path | None = None,
    command: str | None = None,
    json: bool = False,
) -> None:
    """Look for the best plans of a family under a budget, then compare these with the network without attention.

    The same command again goes on where it was broken off; run by several machines on one folder, they share the work.

    Example: `foveate search path/to/images --family "ulsam(groups=1|4) replacing any of block:replaceable"`

    Args:
        data: a folder with train/ and val/, a folder of class folders, Parquet, or "elpv".
        family: plans that are alternatives, in quotes: "ulsam(groups=1|4) replacing any of block:replaceable".
        recipe: "short", "scratch", "imagenet", "aggregation", or a .yaml file; options given here go before it.
        budget: parameters, macs or latency, absolute or relative to no plan: --budget macs=-15% parameters=3M.
        trials: how many plans are tried at most.
        finalists: how many of them are compared.
        seeds: of the comparison; 0: no comparison.
        sampler: which plans are tried where they are too many for all: TPE's, which needs Optuna, or random ones.
        storage: of Optuna, a URL such as postgresql+psycopg2://...; without it a file in the output folder.
        output: folder for search.csv, the trials and the comparison.
        jobs: processes on this machine that share the runs.
        on: who else shares them: processes:4, dask://HOST:PORT, slurm:PARTITION[,key=value] or ray://HOST:PORT.
        workers: how many of those; without it as many as there are.
        page: write a page of Markdown with all trials, and the comparison's page beside it.
        command: the line that made the search, to stand on the page.
        json: print the trials as JSON.
    """
    when_stopped(lambda: after_search(output))
    network, chosen = network or NetworkOptions(), chosen_recipe(recipe, fields)
    check_jobs(jobs)
    limits = by_name("--budget", budget or [], "macs=-15% or parameters=3M")
    check_names(network, chosen, [family])
    opened = open_images(data, images or DataOptions())
    request = {
        "model": open_network(network) if is_folder(network.model) else network.model,
        "family": family,
        "data": opened,
        "recipe": chosen,
        "budget": limits,
        "trials": trials,
        "finalists": finalists,
        "seeds": seeds,
        "sampler": sampler,
        "storage": storage,
        "start": network.start,
        "pretrained": network.pretrained,
        "output": output,
    }
    with helpers(jobs - 1, "search", request):
        found = fv.search(**request, executor=on, workers=workers)
    if json:
        print(json_format.dumps(found.as_dicts(), indent=2))
    else:
        from rich.console import Console

        found.print(Console())
    if found.comparison is not None:
        say(f"report: {fv.report(found.comparison, opened)}")
    for file in fv.write_page(found, page, command) if page is not None else ():
        say(f"written: {file}")
    if found.finalists:
        given = [part for part in (network, images, fields) if part is not None]
        words = [*(["--recipe", recipe] if recipe else ()), *(word for part in given for word in as_words(part))]
        say(f"to train the best: foveate train {shlex.join([data, *words, '--plan', str(found.best.plan)])}")
