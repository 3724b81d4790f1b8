"""The commands ``foveate compare`` and ``foveate results``."""

from __future__ import annotations

import json as json_format
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import foveate as fv
from foveate import FoveateError
from foveate.cli.options import (
    DataOptions,
    DenseOptions,
    NetworkOptions,
    check_names,
    open_boxes,
    open_images,
    open_label_maps,
    open_network,
    say,
)
from foveate.cli.process.given import check_dense, is_folder
from foveate.cli.process.helpers import check_jobs, helpers
from foveate.cli.process.stopping import after_compare, when_stopped
from foveate.cli.train import RECIPE_GROUP, RecipeOptions, chosen_recipe

__all__ = ["compare", "results"]


def compare(
    data: str,
    *,
    plans: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    network: NetworkOptions | None = None,
    images: DataOptions | None = None,
    head: str | None = None,
    output_stride: int = 32,
    recipe: str | None = None,
    fields: Annotated[RecipeOptions | None, Parameter(name="*", group=RECIPE_GROUP)] = None,
    seeds: int | None = None,
    learning_rates: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None,
    margin: float | None = None,
    most_plans: int = 64,
    protocol: Path | None = None,
    runs: Path | None = None,
    output: Path = Path("runs/compare"),
    jobs: int = 1,
    on: str | None = None,
    workers: Annotated[int | None, Parameter(name="--on-workers")] = None,  # a recipe's --workers load images
    export: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    json: bool = False,
) -> None:
    """Train a network without attention and with each plan, for several seeds, and compare.

    The same command again goes on where it was broken off; run by several machines on one folder, they share the work.

    Example: `foveate compare path/to/images --plans "se after blocks.4.2" "cbam after blocks.4.2"`

    Args:
        data: a folder with train/ and val/, a folder of class folders, Parquet, or "elpv"; images beside label maps,
            for segmentation, where plans are compared by mIoU; or images with boxes, for detection, and by mAP.
        plans: plans or families, each in quotes: --plans "se after blocks.4.2" "ulsam(groups=1|4) after blocks.4.2".
        head: of a segmentation network "lraspp" (compact, taken without this), "upernet" or "danet"; of a detector
            "faster_rcnn" (taken without this) or "ssdlite" (compact); with options, such as "faster_rcnn(anchor=16)".
        output_stride: of its trunk, 8, 16 or 32: pixels of the image for one of the coarsest map.
        recipe: "short", "scratch", "imagenet", "aggregation", or a .yaml file; options given here go before it.
        seeds: how many seeds; 3, or as many as the protocol says.
        learning_rates: tried with every plan alike on images held out of the training images; each plan takes its best.
        margin: also say whether each plan is worse by more than so many points of top-1, mIoU or mAP.
        most_plans: how many plans a family may have.
        protocol: a .yaml file with data, network, plans, seeds and recipe; --plans adds plans to it.
        runs: a CSV table of finished runs: these are not made again, and those that are made here are added.
        output: folder for the runs, the tables and report.html.
        jobs: processes on this machine that share the runs.
        on: who else shares them: processes:4, dask://HOST:PORT, slurm:PARTITION[,key=value] or ray://HOST:PORT.
        workers: how many of those; without it as many as there are.
        export: files to write of each plan's first network and to time beside the one without, such as onnx:int8.
        json: print the table as JSON.
    """
    when_stopped(lambda: after_compare(output))
    check_jobs(jobs)
    images = images or DataOptions()
    followed = None if protocol is None else fv.read_protocol(protocol)
    if followed:
        given = {"--model, --pretrained and --start": network, "--recipe and its fields": recipe or fields}
        given |= {"--learning-rates": learning_rates, "--margin": margin, "--parts": images.parts}
        if set_here := [names for names, value in given.items() if value is not None]:
            raise FoveateError(
                f"{set_here[0]}: {protocol} says that already; leave it out, or change a copy of the file"
            )
        network, chosen = NetworkOptions(followed.model, followed.pretrained, followed.start), followed.recipe
        plans, margin = [*followed.plans, *(plans or ())], followed.margin
        images, seeds = replace(images, parts=followed.parts), seeds or followed.seeds
    elif not plans:
        raise FoveateError('compare needs plans: --plans "se after blocks.4.2", or --protocol FILE, which names some')
    else:
        network, chosen = network or NetworkOptions(), chosen_recipe(recipe, fields)
    if export:
        fv.check_targets(export)  # before hours of training
    check_names(network, chosen, plans)
    maps, boxes = fv.find_segmentation(data), fv.find_detection(data)
    model: Any = network.model
    opened: Any
    if maps or boxes:
        if followed or export:
            given_option, there = "--protocol" if followed else "--export", "label maps" if maps else "boxes"
            raise FoveateError(f"{given_option} is for images with one class each, and this data has {there}")
        opened = open_label_maps(data, images) if maps else open_boxes(data, images)
        model = DenseOptions("segment" if maps else "detect", network, head, output_stride, opened.classes)
    else:
        check_dense(head, output_stride, "this data has one class for each image")
        opened = open_images(data, images)
        model = open_network(network) if is_folder(network.model) else network.model
    if followed:
        followed.check(opened)
    request = {
        "model": model,
        "plans": plans,
        "data": opened,
        "recipe": chosen,
        "seeds": 3 if seeds is None else seeds,
        "start": network.start,
        "pretrained": network.pretrained,
        "learning_rates": learning_rates or (),
        "margin": margin,
        "most_plans": most_plans,
        "output": output,
        "runs": runs,
    }
    with helpers(jobs - 1, "compare", request):
        found = fv.compare(**request, executor=on, workers=workers)
    files = fv.export_plans(found, opened, export) if export else None
    report = fv.report(found, opened)
    _show(found, json=json, files=files)
    say(f"report: {report}")
    found.require_all()


def results(
    folder: Path,
    *,
    margin: float | None = None,
    page: Path | None = None,
    command: str | None = None,
    json: bool = False,
) -> None:
    """Show what a comparison found, from its folder alone.

    Example: `foveate results runs/compare --margin 1`

    Args:
        folder: the --output of foveate compare.
        margin: also say whether each plan is worse by more than so many points of top-1, mIoU or mAP.
        page: write a page of Markdown, with the tables as CSV and the pictures beside it.
        command: the line that made the comparison, to stand on the page.
        json: print the table as JSON.
    """
    found = fv.read_comparison(folder, margin)
    _show(found, json=json)
    if page is not None:
        for file in fv.write_page(found, page, command):
            say(f"written: {file}")
    found.require_all()


def _show(found: fv.Comparison, *, json: bool, files: fv.PlanExports | None = None) -> None:
    if json:
        rows = found.as_dicts()
        rows += [{"plan": label, "verdict": "diverged", "verdict_text": why} for label, why in found.diverged.items()]
        if files:
            rows = [{**row, "exports": [each for each in files.rows if each["plan"] == row["plan"]]} for row in rows]
        print(json_format.dumps(rows, indent=2))
        return
    from rich.console import Console

    found.print(Console())
    if files:
        console = Console()
        console.print(files.table(console))
        for each in files.rows:
            if each["reason"]:
                say(f"{each['plan']}, {each['format']} {each['precision']}: {each['reason']}")
