"""The commands. torch is imported only when a command runs, so that ``foveate --help`` answers at once."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

import foveate as fv
from foveate.cli import cost_tree
from foveate.cli.options import DataOptions, ModelOptions, is_folder, open_images, open_network, say
from foveate.cli.reproduce import reproduce
from foveate.errors import FoveateError

__all__ = ["app", "main"]

app = App(
    name="foveate",
    help="Give a convolutional network spatial attention, and learn what it bought.",
    version=lambda: fv.__version__,
)

app.command(reproduce)

_RECIPE = Group("Recipe", sort_key=2)


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


@app.command
def sites(model: str, *, input_size: int | None = None, json: bool = False) -> None:
    """List where attention can go: name, channels, height, width.

    Args:
        model: a timm model, torchvision:NAME, or a folder that foveate saved.
        input_size: side of the images in pixels; without it the model's own.
        json: print JSON.
    """
    found = fv.sites(open_network(ModelOptions(model)), input_size)
    if json:
        _print_json([site.__dict__ for site in found])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("#", "site", "kind", "channels", "height", "width", "replaceable"):
        table.add_column(heading, justify="right" if heading in ("#", "channels", "height", "width") else "left")
    for index, site in enumerate(found):
        row = (f"#{index}", site.name, site.kind, str(site.channels), str(site.height), str(site.width))
        table.add_row(*row, "yes" if site.replaceable else "")
    _console().print(table)


@app.command
def cost(
    model: str,
    *,
    plan: str | None = None,
    input_size: int | None = None,
    counting: Literal["exact", "paper"] = "exact",
    depth: int = 2,
    json: bool = False,
    csv: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> None:
    """Count parameters, MACs, element operations and memory, module by module, with and without the plan.

    Args:
        model: a timm model, torchvision:NAME, or a folder that foveate saved.
        plan: attention to insert first.
        input_size: side of the images in pixels; without it the model's own.
        counting: "exact" counts the real modules, "paper" as the compact-CNN papers do.
        depth: how far down the tree of modules goes; what the plan adds and removes is shown wherever it is.
        json: print JSON.
        csv: write a line for each module to this file; "-" prints them, and nothing else.
    """
    cost_tree.check(counting, depth, json=json, csv=csv)
    network = open_network(ModelOptions(model, plan=plan), input_size)
    found = fv.cost(network, input_size, counting=counting)
    if csv is not None:
        cost_tree.write_csv(found, csv)
    if json:
        _print_json({"plan": str(fv.plan_of(network) or ""), "counting": counting, **cost_tree.as_json(found)})
    elif csv != "-":
        console = _console()
        if found.modules:
            console.print(cost_tree.tree(found, depth, console))
            console.print()
        console.print(cost_tree.totals(found))


@app.command
def train(
    data: str,
    *,
    network: ModelOptions | None = None,
    images: DataOptions | None = None,
    recipe: Annotated[fv.Recipe | None, Parameter(name="*", group=_RECIPE)] = None,
    output: Path = Path("runs/train"),
    resume: bool = False,
    json: bool = False,
) -> None:
    """Train a network on a folder of images, and keep it.

    Args:
        data: a folder with train/ and val/, a folder of class folders, Parquet, or "elpv".
        output: folder for checkpoints, summary.csv and the trained model (last/, model_best/).
        resume: go on with the run that the output folder holds.
        json: print the result as JSON.
    """
    network, recipe = network or ModelOptions(), recipe or fv.Recipe()
    opened = open_images(data, images or DataOptions())
    model = open_network(network, recipe.image_size)
    result = fv.fit(model, opened, recipe, output=output, resume=resume)
    found = result.evaluation
    if json:
        _print_json(
            {"top1": found.top1, "macro_f1": found.macro_f1, "seconds": result.seconds, "folder": str(result.folder)}
        )
        return
    scores = f"top-1 {100 * found.top1:.1f}%, macro-F1 {100 * found.macro_f1:.1f}%"
    print(f"{scores}, {result.seconds:.0f} s; kept in {output}")


@app.command
def compare(
    data: str,
    *,
    plans: Annotated[list[str], Parameter(consume_multiple=True)],
    network: ModelOptions | None = None,
    images: DataOptions | None = None,
    recipe: Annotated[fv.Recipe | None, Parameter(name="*", group=_RECIPE)] = None,
    seeds: int = 3,
    output: Path = Path("runs/compare"),
    resume: bool = False,
    json: bool = False,
) -> None:
    """Train a network without attention and with each plan, for several seeds, and compare.

    Args:
        data: a folder with train/ and val/, a folder of class folders, Parquet, or "elpv".
        plans: the plans, each in quotes: --plans "se after blocks.4.2" "ulsam after blocks.4.2".
        seeds: how many seeds.
        output: folder for the runs, the tables and report.html.
        resume: go on with the comparison that the output folder holds: finished runs are not run again.
        json: print the table as JSON.
    """
    network, recipe = network or ModelOptions(), recipe or fv.Recipe()
    if network.plan is not None:
        raise FoveateError("compare takes --plans, not --plan")
    opened = open_images(data, images or DataOptions())
    found = fv.compare(
        open_network(network) if is_folder(network.model) else network.model,
        plans,
        opened,
        recipe,
        seeds,
        start=network.start,
        pretrained=network.pretrained,
        output=output,
        resume=resume,
    )
    report = fv.report(found, opened)
    if json:
        _print_json(found.as_dicts())
    else:
        found.print(_console())
    say(f"report: {report}")


@app.command
def explain(
    model: str,
    images: Annotated[list[Path], Parameter(consume_multiple=True)],
    *,
    method: Literal["attention", "gradcam"] = "attention",
    target: int | None = None,
    layer: str | None = None,
    pretrained: bool = False,
    plan: str | None = None,
    image_size: int | None = None,
    output: Path = Path("explained"),
    json: bool = False,
) -> None:
    """Show what a network looks at, drawn over the images.

    Args:
        model: a folder that foveate saved, a timm model, or torchvision:NAME.
        images: image files.
        method: "attention" shows the inserted mechanisms' own maps, "gradcam" what speaks for a class.
        target: the class for gradcam, by index; without it the predicted one.
        layer: the layer for gradcam; without it the last feature map.
        pretrained: with a model's name, use its ImageNet weights.
        plan: attention to insert first.
        image_size: side of what the network sees, in pixels; without it the model's own.
        output: a .png file for one image, or a folder.
        json: print predictions and files as JSON.
    """
    network = open_network(ModelOptions(model, pretrained=pretrained, plan=plan), image_size)
    options: dict[str, Any] = {} if target is None else {"target": target}
    if layer is not None:
        options["layer"] = layer
    found = fv.explain(network, list(images), method, image_size=image_size, **options)
    files = found.save(output)
    told: list[dict[str, Any]] = [
        {"image": str(image), "prediction": found.label(int(index)), "probability": float(probability)}
        for image, index, probability in zip(images, found.predictions, found.probabilities, strict=True)
    ]
    if json:
        _print_json({"predictions": told, "files": [str(file) for file in files]})
        return
    for line in told:
        print("{image}: {prediction} ({probability:.0%})".format(**line))
    print(f"drawn: {', '.join(map(str, files[:3]))}{' ...' if len(files) > 3 else ''}")


@app.command
def demo(*, quick: bool = False, output: Path | None = None) -> None:
    """The main job on real input: a pretrained network, real solar cells, attention against none.

    Args:
        quick: fewer images and epochs: under a minute.
        output: folder for the report; without it the next free runs/demo.
    """
    fv.demo(quick=quick, output=output)


def _share_the_cores() -> None:
    """Let threads sleep while they wait when other programs keep the cores busy.

    By default they spin, which is faster alone and much slower beside another program (benchmarks/waiting.py). It must
    be decided before torch is imported. A user's own OMP_WAIT_POLICY stands.
    """
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > (os.cpu_count() or 1) / 4:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. A user's error is one line on stderr and exit code 2 (or the error's own)."""
    _share_the_cores()
    logging.basicConfig(level=os.environ.get("FOVEATE_LOG", "WARNING").upper(), format="%(message)s")
    try:
        app(arguments, exit_on_error=False)
    except CycloptsError:
        sys.exit(2)  # cyclopts has said what is wrong
    except FoveateError as error:
        say(f"foveate: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("foveate: stopped")
        sys.exit(130)
