"""The command ``foveate predict``."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import foveate as fv
from foveate.cli.options import ViewOptions, open_classifier, say
from foveate.cli.process.stopping import kept, when_stopped
from foveate.cli.tables import csv_lines

__all__ = ["predict"]

_SHOWN = 20  # images that could not be predicted


def predict(
    model: str,
    images: Annotated[list[Path], Parameter(consume_multiple=True)],
    *,
    output: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    json: bool = False,
    top: int = 5,
    copy_to: Path | None = None,
    pictures: Path | None = None,
    strict: bool = False,
    pretrained: bool = False,
    image_size: int | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    views: ViewOptions | None = None,
) -> None:
    """Say of which class images are: a line for each on the terminal, or every class's probability as CSV.

    Example: `foveate predict runs/mine path/to/images --output predictions.csv`

    Args:
        model: a folder that foveate saved, the folder of a training run (its best model is taken), or with --pretrained
            a timm model or torchvision:NAME.
        images: image files, folders (the images in them and below), or patterns in quotes such as "dogs/*.jpg".
        output: write a row for each image, with the probability of every class, to this CSV file; "-" prints it. With a
            segmentation network a folder: it gets a PNG for each image, whose numbers are the classes. With a detector
            a .json file: COCO's, with a score for each box, and with the masks that mask_rcnn finds.
        json: print a line of JSON for each image.
        top: how many classes are shown of each image on the terminal and as JSON.
        copy_to: copy each image into a folder of its predicted class in this folder; nothing is overwritten.
        pictures: with a detector, draw each image with its boxes, masks and a legend into this folder; needs --output.
        strict: stop at the first image that cannot be read, instead of counting it.
        pretrained: with a network's name, use its ImageNet weights.
        image_size: side of what the network sees, in pixels; without it the model's own.
        batch_size: images in one pass.
        threads: threads that decode images; without it one for each core, at most 4.
    """
    if output is None or not Path(output).is_dir():  # a folder, which masks may go to
        csv_lines.check(output, json=json, option="--output")
    if copy_to is not None:
        when_stopped(lambda: kept(copy_to))
    to_file = output not in (None, "-")
    found = fv.predict(
        open_classifier(model, pretrained=pretrained),
        list(images),
        top=top,
        image_size=image_size,
        batch_size=batch_size,
        threads=threads,
        strict=strict,
        **(views or ViewOptions()).given(),
        progress=(to_file and not json) or not sys.stdout.isatty(),  # a bar and lines would mix
    )

    if isinstance(found, fv.Masks):
        _refuse_pictures(pictures)
        _write_masks(found, output, json=json, copy_to=copy_to)
        return
    if isinstance(found, fv.Detections):
        _write_boxes(found, output, json=json, copy_to=copy_to, pictures=pictures)
        return
    csv_lines.check(output, json=json, option="--output")
    _refuse_pictures(pictures)

    def show(one: fv.Prediction) -> None:
        print(json_format.dumps(one.to_dict()) if json else one)

    csv = sys.stdout if output == "-" else output
    try:
        count = found.write(csv, copy_to=copy_to, each=show if json or output is None else None)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has seen enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    _report(found, count, [str(place) for place in (output if to_file else None, copy_to) if place])


def _refuse_pictures(pictures: Path | None) -> None:
    if pictures is not None:
        raise fv.FoveateError("--pictures is for detectors, and this network finds no objects: leave it out")


def _write_boxes(
    found: fv.Detections, output: str | None, *, json: bool, copy_to: Path | None, pictures: Path | None
) -> None:
    """Of a detector: one COCO file, or a line for each image."""
    if copy_to is not None:
        raise fv.FoveateError("--copy-to is for classes of images, and this network finds objects: leave it out")
    if output == "-":
        raise fv.FoveateError("--output -: this network's boxes are one JSON file: name it, or take --json for lines")
    if output is None:
        if pictures is not None:
            raise fv.FoveateError("--pictures needs --output FILE.json, which holds the boxes")
        for one in found:
            print(json_format.dumps(one.to_dict()) if json else one)
    else:
        say(f"objects of {found.write(output, pictures=pictures)} images written to {output}")
    _report_bad(found.bad)


def _report_bad(bad: Sequence[tuple[str, str]]) -> None:
    for name, reason in bad[:_SHOWN]:
        say(f"not predicted: {reason if name in reason else f'{name}: {reason}'}")
    if len(bad) > _SHOWN:
        say(f"not predicted: {len(bad) - _SHOWN} more")


def _write_masks(found: fv.Masks, output: str | None, *, json: bool, copy_to: Path | None) -> None:
    """Of a segmentation network: PNG files in the output folder, or a line for each image."""
    if copy_to is not None:
        raise fv.FoveateError("--copy-to is for classes of images, and this network has classes of pixels")
    if output is None:
        for mask in found:
            print(json_format.dumps({"path": mask.name, "shares": mask.shares}) if json else mask)
    elif output == "-" or (Path(output).suffix and not Path(output).is_dir()):
        raise fv.FoveateError(f"--output {output}: this network gives a picture for each image: name a folder for them")
    else:
        say(f"{len(found.write(output))} masks written to {output}")
    _report_bad(found.bad)


def _report(found: fv.Predictions, count: int, written: list[str]) -> None:
    """What there is to say beside the predictions, on stderr."""
    _report_bad(found.bad)
    if not found.named:
        say("the model carries no class names, so classes are numbers")
    if written or found.bad:
        bad = f", {len(found.bad)} could not be" if found.bad else ""
        say(f"{count} images predicted{bad}{'; written: ' if written else ''}{', '.join(written)}")
