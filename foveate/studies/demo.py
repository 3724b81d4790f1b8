"""The main job on real input, with no argument: does attention help a pretrained network to see broken solar cells?

EfficientNet-Lite0 with its ImageNet weights, the ELPV solar cells, the network without attention against ULSAM inserted
and ULSAM in a block's place. The trunk up to ``blocks.5.2`` is frozen and its features are computed once; the tail
trains, with a small initial head and a batch norm momentum of 0.1.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.console import Console

from foveate.data import open_data
from foveate.exporters.export import export
from foveate.studies.comparison.compare import Comparison, compare
from foveate.studies.reporting.report import report
from foveate.training.recipes.recipe import Recipe

__all__ = ["demo"]

MODEL = "tf_efficientnet_lite0"
PLANS = ("ulsam(groups=4) after blocks.5.3", "ulsam(groups=4) replacing blocks.5.3")
RECIPE = Recipe(
    epochs=3,
    learning_rate=1e-3,
    weight_decay=0.01,
    image_size=128,
    batch_size=32,
    augmentation="none",
    label_smoothing=0.1,
    freeze="blocks.5.2",
    bn_momentum=0.1,
    head_init_scale=0.01,
)
QUICK = {"epochs": 2}
QUICK_IMAGES = 240


def _free_folder() -> Path:
    folder = Path("runs/demo")
    number = 2
    while folder.exists():
        folder, number = Path(f"runs/demo-{number}"), number + 1
    return folder


def demo(*, quick: bool = False, output: str | os.PathLike[str] | None = None, progress: bool = True) -> Comparison:
    """Train, compare, look and export, and print where everything is.

    Args:
        quick: fewer images and epochs: a minute instead of some.
        output: folder for runs, tables, overlays and report.html; without it the next free ``runs/demo``.
        progress: show bars and a line for each epoch.

    Returns:
        The comparison that was made.

    Raises:
        FoveateError: the packages of the extra ``demo`` are missing, the folder holds another run, or the exported file
            does not do what the network does.
    """
    began = time.perf_counter()
    console = Console()
    folder = Path(output) if output is not None else _free_folder()
    data = open_data("elpv", limit=QUICK_IMAGES if quick else None)
    console.print(f"[bold]{MODEL}[/] on {len(data.train)} + {len(data.val)} solar cells; attention against none")
    console.print(f"{data.licence}\nThe split: {data.note}.", style="dim")
    recipe = RECIPE.with_(**QUICK) if quick else RECIPE
    found = compare(MODEL, PLANS, data, recipe, seeds=2, pretrained=True, output=folder, progress=progress)
    page = report(found, data, folder=folder, commands=["foveate demo --quick" if quick else "foveate demo"])
    console.print()
    found.print(console)
    console.print(f"\nTo a phone: {PLANS[-1]}, seed 0, as ONNX with 8 bit integers", style="bold", highlight=False)
    exported = export(
        found.models[PLANS[-1]],
        *("onnx", folder / "exported"),
        precision="int8",
        data=data,
        images=len(data.val),
        size=recipe.image_size,
        maps=("attention",),
        overwrite=True,  # in the demo's own folder, which a finished demo left or one that was stopped
    )
    console.print(str(exported), highlight=False, markup=False, soft_wrap=True)
    console.print()
    for what, place in (
        ("report", page),
        ("overlays", folder / "overlays"),
        ("models", f"{folder}/runs/*/attempt.*/last"),
    ):
        console.print(f"{what + ':':10}{place}", highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - began:.0f} seconds", style="dim")
    return found
