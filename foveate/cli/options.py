"""Options that several commands share, and what they open."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import foveate as fv
from foveate.cli.process.given import check_dense, check_used, is_folder
from foveate.errors import FoveateError, printable

__all__ = [
    "DataOptions",
    "DenseOptions",
    "ModelOptions",
    "NetworkOptions",
    "ViewOptions",
    "check_names",
    "open_any",
    "open_boxes",
    "open_classifier",
    "open_images",
    "open_label_maps",
    "open_network",
    "open_network_or_file",
    "say",
    "say_random",
]

_SHOWN = 20  # images that are left out
_RANDOM = (
    "as the name of a network it has random weights, which predict nothing: add --pretrained for its ImageNet weights"
)


@Parameter(name="*")
@dataclass(frozen=True)
class NetworkOptions:
    """Which network; commands that make the plans themselves take no more.

    Args:
        model: a timm model, torchvision:NAME, or a folder that foveate saved.
        pretrained: start from ImageNet weights: from an installed package where there is one, else from the hub.
        start: "identity" makes the attention exactly the identity at first, so that pretrained predictions stay.
    """

    model: str = "mobilenetv2_100"
    pretrained: bool = False
    start: Literal["mechanism", "identity"] | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions(NetworkOptions):
    """Which network, with which attention.

    Args:
        model: a timm model, torchvision:NAME, or a folder that foveate saved.
        pretrained: start from ImageNet weights: from an installed package where there is one, else from the hub.
        start: "identity" makes the attention exactly the identity at first, so that pretrained predictions stay.
        plan: attention to insert, such as "ulsam(groups=4) replacing blocks.5.1; se after blocks.4.2".
    """

    plan: str | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class ViewOptions:
    """How a segmentation network is shown an image.

    Args:
        flip: show each image flipped left to right, too, and average the probabilities.
        scales: show each image with its shorter side at these multiples of the size, such as 0.75 1 1.25, and average.
        window: show each image in windows of so many pixels, which overlap by a third.
    """

    flip: bool = False
    scales: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None
    window: int | None = None

    def given(self) -> dict[str, Any]:
        """As the library's options."""
        return {"flip": self.flip, "scales": self.scales or (), "window": self.window}


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    """How images are read.

    Args:
        on_bad_image: "stop" at a file that is not a whole image, or "skip" it and say so.
        allow_empty: accept class folders without images.
        val_fraction: the part that is kept for validation where the data has no split of its own.
        split_seed: decides which images that are.
        limit: at most so many images of each part.
        parts: of several parts those to train on and the one to be judged by, as in train+val:test.
    """

    on_bad_image: Literal["stop", "skip"] = "stop"
    allow_empty: bool = False
    val_fraction: float = 0.2
    split_seed: int = 0
    limit: int | None = None
    parts: str | None = None


def say(text: str) -> None:
    """A line for the person, on stderr: stdout is for results. Of several processes the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(text), file=sys.stderr)


def say_random(model: str, *, pretrained: bool) -> None:
    """Say so where a network is only named, and nothing that it predicts means anything."""
    if not pretrained and not is_folder(model):
        say(f"{model}: {_RANDOM}")


def open_network(options: NetworkOptions, input_size: int | None = None) -> Any:
    """The network that the options name, with the plan."""
    check_used(options)
    if is_folder(options.model):
        network = fv.load(options.model)
    else:
        network = fv.create_model(options.model, pretrained=options.pretrained)
    if isinstance(options, ModelOptions) and options.plan is not None:
        fv.insert(network, options.plan, start=options.start, input_size=input_size)
    return network


@dataclass(frozen=True)
class DenseOptions:
    """A segmentation or detection network by its parts: called with a seed, it is made.

    Args:
        task: "segment" or "detect".
        network: its trunk, or a folder that foveate saved.
        head: None: the usual one.
        output_stride: of the trunk.
        classes: of the data.
    """

    task: Literal["segment", "detect"]
    network: NetworkOptions
    head: str | None
    output_stride: int
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_used(self.network)
        if is_folder(self.network.model):
            check_dense(self.head, self.output_stride, f"{self.network.model} is a saved one")

    def __call__(self, seed: int = 0) -> Any:  # noqa: ARG002 - the caller has set it
        """The network, without a plan."""
        if is_folder(self.network.model):
            return fv.load(self.network.model)
        given: dict[str, Any] = {} if self.output_stride == 32 else {"output_stride": self.output_stride}
        options = {"classes": self.classes, "pretrained": self.network.pretrained, **given}
        create, usual = _DENSE[self.task]
        return create(self.network.model, self.head or usual, **options)


_DENSE: dict[str, tuple[Callable[..., Any], str]] = {
    "segment": (lambda *parts, **options: fv.create_segmenter(*parts, **options), "lraspp"),
    "detect": (lambda *parts, **options: fv.create_detector(*parts, **options), "faster_rcnn"),
}


def check_names(network: NetworkOptions, recipe: fv.Recipe, plans: Sequence[str]) -> None:
    """Find a slip in a network's name, a plan or a recipe before a large data set is scanned.

    Raises:
        FoveateError: something that is named does not exist, or a plan cannot be read.
    """
    check_used(network)
    recipe.check()
    for plan in plans:
        if plan != "none":  # the network without attention, as compare calls it
            fv.Family.parse(plan)
    if not is_folder(network.model):
        fv.create_model(network.model)


def open_network_or_file(model: str, plan: str | None = None, input_size: int | None = None) -> Any:
    """A network, or an exported file."""
    if Path(model).is_file():
        if plan is not None:
            raise fv.FoveateError(f"--plan: {model} is an exported file, and a plan goes into a network before export")
        return fv.open_exported(model)
    return open_network(ModelOptions(model, plan=plan), input_size)


def open_classifier(model: str, *, pretrained: bool) -> Any:
    """What ``predict`` and ``evaluate`` take, from a path or a network's name: the one place where this is decided.

    Raises:
        FoveateError: it is a network's name and its weights would be random, or --pretrained is given with a path.
    """
    if is_folder(model) or Path(model).exists():
        if pretrained:
            raise FoveateError(f"--pretrained: {model} has weights of its own: leave it out")
        return model  # the library opens it
    if not pretrained:
        raise FoveateError(f"{model!r} is not a folder that foveate saved; {_RANDOM}")
    return open_network(ModelOptions(model, pretrained=True))


def open_boxes(source: str, options: DataOptions) -> Any:
    """The data set of images with boxes, with what there is to say about it."""
    if options.allow_empty or options.parts is not None:
        raise FoveateError("--allow-empty and --parts are for classification, and this data has boxes")
    data = fv.open_detection(
        source,
        seed=options.split_seed,
        val_fraction=options.val_fraction,
        limit=options.limit,
        on_bad_image=options.on_bad_image,
    )
    counts = f"{len(data.train)} training and {len(data.val)} validation images with boxes"
    say(f"{data.name}: {counts}, {len(data.classes)} classes")
    say(data.note)
    for reason, names in data.unused:
        say(f"not used: {len(names)} files {reason}, such as {names[0]}")
    _say_bad([reason for _, reason in data.bad])
    return data


def open_any(source: str, options: DataOptions) -> Any:
    """The data set, for whatever task it is."""
    if fv.find_segmentation(source):
        return open_label_maps(source, options)
    return open_boxes(source, options) if fv.find_detection(source) else open_images(source, options)


def _say_bad(reasons: Sequence[str]) -> None:
    for reason in reasons[:_SHOWN]:
        say(f"left out: {reason}")
    if len(reasons) > _SHOWN:
        say(f"left out: {len(reasons) - _SHOWN} more, which foveate data check lists")


def open_label_maps(source: str, options: DataOptions) -> Any:
    """The data set of images with label maps, with what there is to say about it."""
    if options.allow_empty or options.on_bad_image != "stop" or options.parts is not None:
        only = "--allow-empty, --on-bad-image and --parts are for classification"
        raise FoveateError(f"{only}, and this data has label maps")
    data = fv.open_segmentation(source, seed=options.split_seed, val_fraction=options.val_fraction, limit=options.limit)
    counts = f"{len(data.train)} training and {len(data.val)} validation images with label maps"
    say(f"{data.name}: {counts}, {len(data.classes)} classes")
    for text in (data.note, data.licence):
        if text:
            say(text)
    for reason, names in data.unused:
        say(f"not used: {len(names)} files {reason}, such as {names[0]}")
    return data


def open_images(source: str, options: DataOptions, min_classes: int = 2) -> Any:
    """The data set, with what there is to say about it."""
    data = fv.open_data(
        source,
        seed=options.split_seed,
        val_fraction=options.val_fraction,
        on_bad_image=options.on_bad_image,
        allow_empty=options.allow_empty,
        limit=options.limit,
        min_classes=min_classes,
        parts=options.parts,
    )
    say(f"{data.name}: {len(data.train)} training and {len(data.val)} validation images, {len(data.classes)} classes")
    for text in (data.note, data.licence):
        if text:
            say(text)
    _say_bad(data.bad)
    return data
