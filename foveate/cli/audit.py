"""The command ``foveate audit``."""

from __future__ import annotations

import json as json_format
import sys
from typing import Annotated

from cyclopts import Parameter

import foveate as fv
from foveate.cli.options import DataOptions, ModelOptions, open_any, open_network
from foveate.cli.tables import csv_lines

__all__ = ["audit"]

MOST = 1000  # images, where the user sets no limit


def audit(
    model: str,
    data: str,
    *,
    images: DataOptions | None = None,
    image_size: int | None = None,
    batch_size: int = 32,
    json: bool = False,
    csv: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> None:
    """Find out of each inserted attention whether it does anything: works, static, inert or harmful.

    Example: `foveate audit runs/mine path/to/images`

    Args:
        model: a folder that foveate saved.
        data: a folder with train/ and val/, a folder of class folders, Parquet, or "elpv"; or images beside label maps,
            where the mIoU stands in the place of accuracy, or with boxes, where the mAP does. The validation part is
            used, without --limit at most 1000 images of it.
        image_size: side of the images in pixels; without it the model's own.
        batch_size: images in one pass.
        json: print JSON.
        csv: write a line for each module to this file; "-" prints them, and nothing else.
    """
    csv_lines.check(csv, json=json)
    options = images or DataOptions()
    network = open_network(ModelOptions(model), image_size)
    opened = open_any(data, options)
    limit = MOST if options.limit is None else None  # else the data is cut already
    found = fv.audit(network, opened, image_size=image_size, batch_size=batch_size, progress=True, limit=limit)
    if csv == "-":
        found.to_csv(sys.stdout)
    elif csv is not None:
        found.write_csv(csv)
    if json:
        score = "accuracy" if found.measure.key == "top1" else found.measure.key
        totals = {"data": found.data, "images": found.images, score: found.accuracy, "seconds": found.seconds}
        print(json_format.dumps({**totals, "modules": found.as_dicts()}, indent=2))
    elif csv != "-":
        found.print()
