"""The command ``foveate predict``."""

from __future__ import annotations

import json as json_format
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import foveate as fv
from foveate.cli.options import open_classifier, say
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
    strict: bool = False,
    pretrained: bool = False,
    image_size: int | None = None,
    batch_size: int = 32,
    threads: int | None = None,
) -> None:
    """Say of which class images are: a line for each on the terminal, or every class's probability as CSV.

    Example: `foveate predict runs/mine path/to/images --output predictions.csv`

    Args:
        model: a folder that foveate saved, the folder of a training run (its best model is taken), or with --pretrained
            a timm model or torchvision:NAME.
        images: image files, folders (the images in them and below), or patterns in quotes such as "dogs/*.jpg".
        output: write a row for each image, with the probability of every class, to this CSV file; "-" prints it. With a
            segmentation network a folder: it gets a PNG for each image, whose numbers are the classes.
        json: print a line of JSON for each image.
        top: how many classes are shown of each image on the terminal and as JSON.
        copy_to: copy each image into a folder of its predicted class in this folder; nothing is overwritten.
        strict: stop at the first image that cannot be read, instead of counting it.
        pretrained: with a network's name, use its ImageNet weights.
        image_size: side of what the network sees, in pixels; without it the model's own.
        batch_size: images in one pass.
        threads: threads that decode images; without it one for each core, at most 4.
    """
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
        progress=(to_file and not json) or not sys.stdout.isatty(),  # a bar and lines would mix
    )

    if isinstance(found, fv.Masks):
        _write_masks(found, output, json=json, copy_to=copy_to)
        return

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


def _write_masks(found: fv.Masks, output: str | None, *, json: bool, copy_to: Path | None) -> None:
    """Of a segmentation network: PNG files in the output folder, or a line for each image."""
    if copy_to is not None:
        raise fv.FoveateError("--copy-to is for classes of images, and this network has classes of pixels")
    if output is None:
        for mask in found:
            print(json_format.dumps({"path": mask.name, "shares": mask.shares}) if json else mask)
    elif output == "-" or Path(output).suffix:
        raise fv.FoveateError(f"--output {output}: this network gives a picture for each image: name a folder for them")
    else:
        say(f"{len(found.write(output))} masks written to {output}")
    for name, reason in found.bad[:_SHOWN]:
        say(f"not predicted: {reason if name in reason else f'{name}: {reason}'}")
    if len(found.bad) > _SHOWN:
        say(f"not predicted: {len(found.bad) - _SHOWN} more")


def _report(found: fv.Predictions, count: int, written: list[str]) -> None:
    """What there is to say beside the predictions, on stderr."""
    for name, reason in found.bad[:_SHOWN]:
        say(f"not predicted: {reason if name in reason else f'{name}: {reason}'}")
    if len(found.bad) > _SHOWN:
        say(f"not predicted: {len(found.bad) - _SHOWN} more")
    if not found.named:
        say("the model carries no class names, so classes are numbers")
    if written or found.bad:
        bad = f", {len(found.bad)} could not be" if found.bad else ""
        say(f"{count} images predicted{bad}{'; written: ' if written else ''}{', '.join(written)}")
