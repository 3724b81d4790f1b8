"""Commands about data sets."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Mapping, Sequence

from cyclopts import App

import foveate as fv
from foveate.errors import printable

__all__ = ["data"]

data = App(name="data", help="Look at a data set before a network is trained on it.")

_SHOWN = 20  # lines of a kind; --json has all
_OF_A_GROUP = 6  # names of equal images on a line


@data.command
def check(source: str, *, val_fraction: float = 0.2, split_seed: int = 0, json: bool = False) -> None:
    """List bad images, the same picture twice, files that are not used, and the classes. Exits with 1 if not sound.

    Example: `foveate data check path/to/images`

    Args:
        source: a folder with train/ and val/, a folder of class folders, Parquet, tar files, hf:NAME,
            torchvision:NAME, or "elpv"; images beside label maps; or images with boxes, in COCO's or Pascal VOC's
            files.
        val_fraction: the part that is for validation where the data has no split of its own.
        split_seed: decides which images that are.
        json: print everything as JSON.
    """
    if fv.find_segmentation(source):
        maps = fv.check_segmentation(source, seed=split_seed, val_fraction=val_fraction)
        print(jsons.dumps(maps.to_dict(), indent=2)) if json else _print_maps(maps)
        sys.exit(0 if maps.sound else 1)
    if fv.find_detection(source):
        boxes = fv.check_detection(source, seed=split_seed, val_fraction=val_fraction)
        print(jsons.dumps(boxes.to_dict(), indent=2)) if json else _print_boxes(boxes)
        sys.exit(0 if boxes.sound else 1)
    found = fv.check_data(source, seed=split_seed, val_fraction=val_fraction)
    if json:
        print(jsons.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
    sys.exit(0 if found.sound else 1)


def _print(found: fv.DataReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("class", box=None, pad_edge=False)
    for heading in ("train", "val"):
        table.add_column(heading, justify="right")
    for name, train, val in found.counts:
        table.add_row(escape(name), str(train), str(val), style=None if train else "red")
    print(f"{found.name}: {found.note}")
    console.print(table)
    lines = {
        "bad images": [reason if image in reason else f"{image}: {reason}" for image, reason in found.bad],
        "in training and in validation": [_equal(group) for group in found.leaks],
        "in two classes": [_equal(group) for group in found.two_classes],
        "equal byte by byte": [_equal(group) for group in found.same_bytes],
        "equal once decoded": [_equal(group) for group in found.same_pixels],
    }
    for reason, names in found.unused:
        lines[f"not used, {reason}"] = list(names)
    _print_groups(lines)
    if not found.unused:
        print("not used: none")


def _print_maps(found: fv.SegmentationReport) -> None:
    print(printable(f"{found.name}: {found.note}"))
    in_train = max(1, sum(train for _, train, _ in found.pixels))
    in_val = max(1, sum(val for _, _, val in found.pixels))
    for name, train, val in found.pixels:
        print(printable(f"  {name}: {train / in_train:.2%} of training and {val / in_val:.2%} of validation pixels"))
    lines = {"bad": [reason for _, reason in found.bad], "label maps of which nothing counts": list(found.ignored)}
    for reason, names in found.unused:
        lines[f"not used, {reason}"] = list(names)
    _print_groups(lines)


def _print_boxes(found: fv.DetectionReport) -> None:
    print(printable(f"{found.name}: {found.note}"))
    for name, train, val in found.objects:
        print(printable(f"  {name}: {train} training and {val} validation objects"))
    print(f"crowds and difficult objects, which do not count: {found.ignored or 'none'}")
    print(f"masks of objects: {found.masks or 'none'}")
    lines = {"bad": [reason for _, reason in found.bad], "images without an object": list(found.empty)}
    if found.without_mask:
        lines["objects without a mask, in the images"] = list(found.without_mask)
    for reason, names in found.unused:
        lines[f"not used, {reason}"] = list(names)
    _print_groups(lines)


def _equal(group: Sequence[str]) -> str:
    """The names of equal images; of many the first, and how many there are."""
    more = f" = ... ({len(group)} images in all)" if len(group) > _OF_A_GROUP else ""
    return " = ".join(group[:_OF_A_GROUP]) + more


def _print_groups(groups: Mapping[str, Sequence[str]]) -> None:
    """How many there are of each kind, and the first of them."""
    for kind, group in groups.items():
        print(f"{kind}: {len(group) or 'none'}")
        for line in group[:_SHOWN]:
            print(f"  {printable(line)}")
        if len(group) > _SHOWN:
            print(f"  and {len(group) - _SHOWN} more: --json lists all")
