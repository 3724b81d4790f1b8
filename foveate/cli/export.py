"""The command ``foveate export``."""

from __future__ import annotations

import json as json_format
import sys
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import foveate as fv
from foveate.cli.options import DataOptions, ModelOptions, open_any, open_network, say, say_random
from foveate.cli.process.given import refuse_unused
from foveate.cli.tables import csv_lines
from foveate.errors import FoveateError

__all__ = ["export"]


def export(
    model: str,
    *,
    to: Annotated[list[str], Parameter(consume_multiple=True)],
    output: str,
    precision: Annotated[list[Literal["fp32", "fp16", "int8"]] | None, Parameter(consume_multiple=True)] = None,
    data: str | None = None,
    images: int = 100,
    maps: Annotated[list[Literal["attention", "cam"]] | None, Parameter(consume_multiple=True)] = None,
    input: Literal["float", "uint8"] = "float",
    batch: str = "dynamic",
    size: str | None = None,
    keep: Literal["auto", "none", "attention"] = "auto",
    softmax: bool = False,
    top: int = 0,
    plan: str | None = None,
    pretrained: bool = False,
    check: Annotated[bool, Parameter(negative="--no-check")] = True,
    time: Annotated[bool, Parameter(negative="--no-time")] = True,
    overwrite: bool = False,
    keep_failed: bool = False,
    example: bool = False,
    python: str | None = None,
    json: bool = False,
    csv: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    options: DataOptions = DataOptions(),  # noqa: B008 - frozen
) -> None:
    """Write a network as files for other runtimes, each checked against it before it is kept.

    The exit code is 1 when a file could not be written or does not do what the network does.

    Example: `foveate export runs/mine --to onnx --output exported`

    Args:
        model: a run folder, a folder that foveate saved, a timm model, or torchvision:NAME.
        to: formats, one or more: onnx, pt2, ...
        output: the folder for the files.
        precision: one or more.
        data: images to check with (validation part) and to calibrate int8 with (training part).
        images: at most so many of each.
        maps: more outputs: the attention's own maps, the class activation map of the predicted class.
        input: "uint8" takes the pixels as they are, (B, H, W, C), with the normalisation in the file.
        batch: "dynamic", or the one number of images that the file takes.
        size: side of the images in pixels, HEIGHTxWIDTH, or "dynamic"; the model's own without a word.
        keep: what int8 leaves in more bits.
        softmax: an output with probabilities, too.
        top: outputs with so many most probable classes.
        plan: attention to insert first.
        pretrained: start from ImageNet weights.
        check: run each file beside the network.
        time: time both.
        overwrite: replace files that are there.
        keep_failed: keep files that failed a check, in a folder of their own.
        example: write a Python program beside each file that uses it without foveate.
        python: the interpreter of an environment with litert-torch, which converts for litert.
        json: print JSON.
        csv: write a line for each file to this file; "-" prints them, and nothing else.
        options: how the data is read.
    """
    csv_lines.check(csv, json=json)
    if data is None:
        refuse_unused(options, "the images of --data: add --data")
    if keep != "auto" and "int8" not in (precision or ()):
        raise FoveateError(f"--keep {keep} is for 8 bits: add --precision int8, or leave it out")
    if python is not None and "litert" not in to:
        raise FoveateError("--python is for litert: add --to litert, or leave it out")
    if keep_failed and not check:
        raise FoveateError("--keep-failed is for a file that failed a check: leave it or --no-check out")
    asked: dict[str, Any] = {
        "images": images,
        "maps": tuple(maps or ()),
        "input": input,
        "batch": _batch(batch),
        "size": _size(size),
        "keep": keep,
        "softmax": softmax,
        "top": top,
        "check": check,
        "time": time,
        "overwrite": overwrite,
        "keep_failed": keep_failed,
        "example": example,
        "python": python,
    }
    network = open_network(ModelOptions(model, pretrained=pretrained, plan=plan))
    opened = None if data is None else open_any(data, options)
    found = fv.export_all(
        network,
        to,
        output,
        precisions=precision or ["fp32"],
        data=opened,
        started=lambda name, bits: say(f"{name} {bits} ..."),
        options=asked,
    )
    say_random(model, pretrained=pretrained)
    if csv is not None:
        csv_lines.write_csv([row.to_dict() for row in found.rows], csv)
    if json:
        rows = [{**row.to_dict(), "file": row.exported.to_dict() if row.exported else None} for row in found.rows]
        print(json_format.dumps(rows, indent=2))
    elif csv != "-":
        _print(found)
    if found.failed:
        sys.exit(1)


def _batch(text: str) -> Any:
    if not text.isdecimal() and text != "dynamic":
        raise FoveateError(f"--batch {text!r}: write a number of images, or dynamic")
    return int(text) if text.isdecimal() else text


def _size(text: str | None) -> Any:
    if text is None or text == "dynamic":
        return text
    sides = text.lower().split("x")
    if not all(side.isdecimal() for side in sides) or len(sides) > 2:
        raise FoveateError(f"--size {text!r}: write a side in pixels, HEIGHTxWIDTH, or dynamic")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _print(found: fv.ExportTable) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = [row.to_dict() for row in found.rows]
    shown = {
        "MB": ("megabytes", "{:.2f}"),
        "difference": ("difference", "{:.1e}"),
        "agreement": ("agreement", "{:.3f}"),
        "attention off": ("agreement_without", "{:.3f}"),
        "correlation": ("lowest_correlation", "{:.3f}"),
        "top-1": ("top1", "{:.3f}"),
        "network": ("network_top1", "{:.3f}"),
        "mIoU": ("miou", "{:.4f}"),
        "network mIoU": ("network_miou", "{:.4f}"),
        "mAP": ("map", "{:.4f}"),
        "network mAP": ("network_map", "{:.4f}"),
        "ms": ("milliseconds", "{:.2f}"),
        "PyTorch ms": ("network_milliseconds", "{:.2f}"),
    }
    shown = {heading: given for heading, given in shown.items() if any(row[given[0]] is not None for row in rows)}
    table = Table(box=None, pad_edge=False)
    for heading in ("format", "bits", "", *shown):
        table.add_column(heading, justify="right" if heading in shown else "left", no_wrap=True)
    for row in rows:
        cells = ["-" if row[key] is None else form.format(row[key]) for key, form in shown.values()]
        table.add_row(row["format"], row["precision"], row["status"], *cells)
    console = Console()
    console.print(table)
    for made in found.rows:
        if made.reason:
            console.print(f"{made.format} {made.precision}: {made.reason}", style="red", highlight=False, markup=False)
        elif made.exported:
            written = [f"used by {made.exported.example}"] if made.exported.example else []
            notes = [note for note in (*written, made.exported.images, *made.exported.notes) if note]
            text = f"{made.exported.path}: {'; '.join(notes)}"
            console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)
