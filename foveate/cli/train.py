"""Training from the command line: a recipe by name or from a file, and any of its fields."""

from __future__ import annotations

import dataclasses
import json as jsons
import operator
import os
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

import foveate as fv
from foveate.cli.options import (
    DataOptions,
    DenseOptions,
    ModelOptions,
    open_boxes,
    open_images,
    open_label_maps,
    open_network,
    say,
)
from foveate.cli.process.given import check_dense
from foveate.cli.process.stopping import after_train, when_stopped
from foveate.errors import printable

__all__ = ["RECIPE_GROUP", "RecipeOptions", "chosen_recipe", "train"]

RECIPE_GROUP = Group("Recipe", sort_key=2)


class _Left:
    """The value of an option that was not given: the recipe's own stays."""

    def __repr__(self) -> str:
        return "the recipe's"


_LEFT: Any = _Left()


class _Unchecked:
    """Tells pydantic to take any value: where a program has imported it, cyclopts lets it check ``_LEFT``, too."""

    def __get_pydantic_core_schema__(self, *_: object) -> dict[str, str]:
        return {"type": "any"}


class _Shown:
    """Shows a recipe's default in the help."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, value: object) -> str:  # noqa: ARG002 - cyclopts gives it
        return self.text


def _options() -> Any:
    """A dataclass with the fields of Recipe, none of them given."""
    hints = typing.get_type_hints(fv.Recipe)
    fields = []
    for field in dataclasses.fields(fv.Recipe):
        # A recipe in a file may say true, and the option then no.
        negative = f"--no-{field.name.replace('_', '-')}" if hints[field.name] is bool else ()
        parameter = Parameter(show_default=_Shown(repr(field.default)), negative=negative)
        shown = operator.getitem(typing.cast(Any, Annotated), (hints[field.name], parameter, _Unchecked()))
        fields.append((field.name, shown, dataclasses.field(default=_LEFT)))
    made = dataclasses.make_dataclass("RecipeOptions", fields, frozen=True, namespace={"__doc__": fv.Recipe.__doc__})
    made.__module__ = __name__
    return made


if TYPE_CHECKING:
    RecipeOptions = Any
else:
    RecipeOptions = _options()


def chosen_recipe(source: str | None, options: Any) -> fv.Recipe:
    """The recipe of this name or file (without one, the defaults), with the options that were given."""
    given = {} if options is None else {k: v for k, v in vars(options).items() if v is not _LEFT}
    return fv.open_recipe(source, **given) if source is not None else fv.Recipe(**given)


def _dense(options: DenseOptions, image_size: int | None) -> Any:
    """The segmentation or detection network that the options name, with the plan."""
    model, network = options(), options.network
    if isinstance(network, ModelOptions) and network.plan is not None:
        fv.insert(model, network.plan, start=network.start, input_size=image_size)
    return model


def _task_of(data: str) -> Literal["classify", "segment", "detect"]:
    """What the data are for."""
    return "segment" if fv.find_segmentation(data) else "detect" if fv.find_detection(data) else "classify"


def train(
    data: str,
    *,
    recipe: str | None = None,
    network: ModelOptions | None = None,
    images: DataOptions | None = None,
    fields: Annotated[RecipeOptions | None, Parameter(name="*", group=RECIPE_GROUP)] = None,
    task: Literal["classify", "segment", "detect"] | None = None,
    head: str | None = None,
    output_stride: int = 32,
    output: Path = Path("runs/train"),
    resume: bool = False,
    cache_folder: Path | None = None,
    tracker: str | None = None,
    timeout_seconds: float = 600,
    json: bool = False,
) -> None:
    """Train a network on images, and keep it.

    On several GPUs or machines: torchrun --nproc-per-node 2 -m foveate train ...

    Example: `foveate train path/to/images --plan "se after blocks.4.2" --pretrained --output runs/mine`

    Args:
        data: a folder with train/ and val/, a folder of class folders, Parquet, tar files, hf:NAME, torchvision:NAME,
            or "elpv"; a folder of images/ beside annotations/, ADE20K, Pascal VOC or Cityscapes for segmentation; or
            images with boxes, in COCO's or Pascal VOC's files, for detection.
        task: "segment" is for the class of each pixel, "detect" for the objects. Without it the data decide: label maps
            beside the images are for the one, boxes for the other.
        head: of a segmentation network "lraspp" (compact, taken without this), "upernet" or "danet"; of a detector
            "faster_rcnn" (taken without this), "mask_rcnn" (which finds masks, too, and learns from data with masks) or
            "ssdlite" (compact); with options, such as "faster_rcnn(anchor=16)".
        output_stride: of its trunk, 8, 16 or 32: pixels of the image for one of the coarsest map.
        recipe: "short", "scratch", "imagenet", "aggregation", or a .yaml file; options given here go before it.
        output: folder for checkpoints, summary.csv and the trained model (last/, model_best/).
        resume: go on with the run that the output folder holds.
        cache_folder: keep decoded images here, for this run and later ones.
        tracker: log each epoch by one of Accelerate's trackers, such as "tensorboard".
        timeout_seconds: with several processes, how long one waits for another.
        json: print the result as JSON.
    """
    when_stopped(lambda: after_train(output))
    chosen, network = chosen_recipe(recipe, fields), network or ModelOptions()
    import torch

    chosen.check()
    torch.manual_seed(chosen.seed)  # random weights are the seed's, too
    wanted: Literal["classify", "segment", "detect"] = task or _task_of(data)
    if wanted == "detect":
        say("training for detection, the objects in images" + ("" if task else ": the data have boxes (--task)"))
        opened = open_boxes(data, images or DataOptions())
        model = _dense(DenseOptions(wanted, network, head, output_stride, opened.classes), chosen.image_size)
    elif wanted == "segment":
        say(
            "training for segmentation, the class of each pixel"
            + ("" if task else ": the data are label maps (--task)")
        )
        opened = open_label_maps(data, images or DataOptions())
        model = _dense(DenseOptions(wanted, network, head, output_stride, opened.classes), chosen.image_size)
    else:
        check_dense(head, output_stride, "this data has one class for each image")
        model = open_network(network, chosen.image_size)  # a slip in a name is found before much data is scanned
        opened = open_images(data, images or DataOptions())
    options: dict[str, Any] = {"tracker": tracker, "timeout_seconds": timeout_seconds}
    if cache_folder is not None:
        options["cache"] = fv.FeatureCache(folder=cache_folder)
    result = fv.fit(model, opened, chosen, output=output, resume=resume, **options)
    if os.environ.get("RANK", "0") != "0":
        return
    found = result.evaluation
    if json:
        numbers = {name: value for name, value in found.to_dict(opened.classes).items() if name != "loss"}
        rest = {"seconds": result.seconds, "folder": str(result.folder), "notes": list(result.notes)}
        print(jsons.dumps({**numbers, **rest}, indent=2))
        return
    print(printable(f"{found.headline}, {result.seconds:.0f} s; kept in {output}"))
