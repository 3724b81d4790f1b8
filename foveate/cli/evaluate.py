"""The command ``foveate evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import foveate as fv
from foveate.cli.options import (
    DataOptions,
    ViewOptions,
    open_boxes,
    open_classifier,
    open_images,
    open_label_maps,
)
from foveate.cli.tables import csv_lines
from foveate.errors import printable
from foveate.io import json_text

__all__ = ["evaluate"]

_ALL, _WORST = 30, 10  # classes that are all shown; of more the worst


def evaluate(
    model: str,
    data: str,
    *,
    images: DataOptions | None = None,
    part: Literal["val", "train", "all"] = "val",
    pretrained: bool = False,
    image_size: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    views: ViewOptions | None = None,
    boundary: bool = False,
    confusion: Path | None = None,
    csv: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    json: bool = False,
) -> None:
    """Measure how good a network is on labelled images: accuracy, loss, and precision, recall and F1 of each class.

    Example: `foveate evaluate runs/mine path/to/images`

    Args:
        model: a folder that foveate saved, the folder of a training run (its best model is taken), or with --pretrained
            a timm model or torchvision:NAME.
        data: a folder with train/ and val/, a folder of class folders, Parquet, hf:NAME, torchvision:NAME, or "elpv".
            Its classes are found among the model's by name; they may be fewer. Or images beside label maps, for a
            segmentation network: the intersection over union of each class. Or images with boxes, for a detector: the
            average precision of each class.
        part: which images; without a split of its own, "val" is the fifth that "foveate train" does not train on.
        pretrained: with a network's name, use its ImageNet weights.
        image_size: side of the images in pixels; without it the model's own.
        batch_size: images in one pass.
        workers: processes that load images.
        boundary: of label maps, measure boundary IoU, too: how well the contours are met.
        confusion: draw the confusion matrix to this .png, .svg or .pdf file.
        csv: write a line for each class to this file; "-" prints them, and nothing else.
        json: print every metric as JSON.
    """
    csv_lines.check(csv, json=json)
    if confusion is not None:
        csv_lines.check(str(confusion), json=False, option="--confusion", endings=(".png", ".svg", ".pdf"))
    network = open_classifier(model, pretrained=pretrained)
    maps = fv.find_segmentation(data)
    boxes = not maps and fv.find_detection(data)
    if (maps or boxes) and confusion is not None:
        what = "label maps" if maps else "boxes"
        raise fv.FoveateError(f"--confusion is for classification, and this data has {what}: take --csv")
    options = images or DataOptions()
    if maps or boxes:
        opened = open_label_maps(data, options) if maps else open_boxes(data, options)
    else:
        opened = open_images(data, options, min_classes=1)
    found = fv.evaluate(
        network,
        opened,
        part=part,
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
        **(views or ViewOptions()).given(),
        boundary=boundary,
        progress=True,
    )
    rows = found.per_class()
    if confusion is not None:
        found.draw_confusion(confusion)
    if csv is not None:
        csv_lines.write_csv(rows, csv)
    if json:
        count = len(found.counts if maps else found.objects if boxes else found.labels)
        print(json_text({"data": opened.name, "part": part, "images": count, **found.to_dict()}))
    elif csv != "-" and boxes:
        print(printable(f"{opened.name}, {part}: {len(found.objects)} images, {found.headline}"))
        masks = ("mask_ap", "mask_ap50") if found.mask_ap is not None else ()
        _table(rows, ("class", "images", "objects", "ap", "ap50", *masks))
    elif csv != "-" and maps:
        print(printable(f"{opened.name}, {part}: {len(found.counts)} images, {found.headline}, loss {found.loss:.4f}"))
        contours = ("boundary_iou",) if boundary else ()
        _table(rows, ("class", "images", "iou", *contours, "recall", "precision"))
    elif csv != "-":
        _print(found, rows, opened.name, part)


def _table(rows: list[dict[str, Any]], headings: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for row in rows:
        numbers = [_number(row[key]) for key in headings[2:]]
        table.add_row(escape(printable(row["class"])), str(row["images"]), *numbers)
    Console().print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _print(found: fv.Evaluation, rows: list[dict[str, Any]], name: str, part: str) -> None:
    present = [row for row in rows if row["images"]]
    shown = present if len(present) <= _ALL else sorted(present, key=lambda row: row["f1"])[:_WORST]
    five = min(5, found.probabilities.shape[1])
    print(printable(f"{name}, {part}: {len(found.labels)} images, {len(rows)} classes of the model"))
    print(f"top-1 {found.top1:.2%}, top-{five} {found.top5:.2%}, loss {found.loss:.4f}, macro F1 {found.macro_f1:.4f}")
    _table(shown, ("class", "images", "recall", "precision", "f1"))
    if len(shown) < len(present):
        print(f"the {_WORST} of {len(present)} classes with the lowest F1; --csv FILE writes all")
    elif len(present) < len(rows):
        print(f"{len(rows) - len(present)} classes of the model have no image here")
