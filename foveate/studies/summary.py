"""A comparison as one page: the table, cost against accuracy, and what each network looks at."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from foveate import __version__
from foveate.data import ImageData
from foveate.errors import FoveateError
from foveate.explanations import explain
from foveate.studies.comparison import BASELINE, Comparison
from foveate.studies.report import write_report
from foveate.surgery import attentions

__all__ = ["report"]


def report(
    comparison: Comparison,
    data: ImageData,
    *,
    folder: str | Path | None = None,
    images: int = 4,
    commands: Sequence[str] = (),
) -> Path:
    """Write ``report.html``, one self-contained page, and ``overlays/`` with its pictures.

    Args:
        comparison: from ``compare``.
        data: what it was made on; pictures are taken from its validation part.
        folder: where to write; without it the comparison's own.
        images: how many images are looked at, spread over the classes.
        commands: the lines that made the comparison, to be shown.

    Raises:
        FoveateError: neither ``folder`` nor the comparison has a folder.
    """
    place = Path(folder) if folder is not None else comparison.folder
    if place is None:
        raise FoveateError("report: the comparison has no folder; give report(..., folder=...)")
    overlays = place / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    chosen = _spread_over_classes(data, images)
    pictures = [data.val.load(index) for index in chosen]
    captions = [f"{data.classes[data.val.label(index)]}: {data.val.names[index]}" for index in chosen]
    galleries = []
    for number, (label, model) in enumerate(comparison.models.items()):
        for method in ("attention", "gradcam"):
            if method == "attention" and not any(hasattr(m, "attend") for m in attentions(model).values()):
                continue
            found = explain(model, pictures, method, image_size=comparison.recipe.image_size)
            drawn = [found.draw(k) for k in range(len(pictures))]
            for k, picture in enumerate(drawn):
                picture.save(overlays / f"{number}_{method}_{k}.png")
            galleries.append((_heading(label, method), list(zip(captions, drawn, strict=True))))
    return write_report(
        place,
        title=f"{data.name}: attention against none",
        rows=comparison.as_dicts(),
        galleries=galleries,
        notes=_notes(comparison, data),
        commands=list(commands),
    )


def _heading(label: str, method: str) -> str:
    what = "where its attention lies" if method == "attention" else "what speaks for the predicted class (Grad-CAM)"
    return f"{'Without attention' if label == BASELINE else label}: {what}"


def _spread_over_classes(data: ImageData, count: int) -> list[int]:
    """Indices of validation images, class by class in turn, from the middle of each class."""
    of_class = [[i for i, label in enumerate(data.val.labels) if label == c] for c in range(len(data.classes))]
    queues = [members[len(members) // 2 :] for members in of_class]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def _notes(comparison: Comparison, data: ImageData) -> list[str]:
    recipe = comparison.recipe
    seeds = ", ".join(map(str, comparison.seeds))
    changed = {k: v for k, v in recipe.to_dict().items() if v != getattr(type(recipe)(), k)}
    fair = (
        f"{len(data.train)} training and {len(data.val)} validation images. Seeds {seeds}: for one seed every plan "
        "starts from the same shared weights and sees the same images in the same order."
    )
    statistics = (
        "The difference is in points of top-1 accuracy against the network without attention, paired over seeds and "
        "images, with a 95% interval (Student's t with Welch and Satterthwaite's degrees of freedom). An interval that "
        "holds 0 is no evidence of a difference. Intervals are not corrected for the number of plans."
    )
    machine = f"Python {platform.python_version()}, {platform.machine()}, {torch.get_num_threads()} threads"
    notes = [
        fair,
        statistics,
        "Recipe, where it is not the default: " + ", ".join(f"{k}={v}" for k, v in changed.items()) + ".",
        f"foveate {__version__}, torch {torch.__version__}, timm {timm.__version__}, {machine}.",
    ]
    return [*([f"The split: {data.note}."] if data.note else []), *([data.licence] if data.licence else []), *notes]
