"""The pictures of a report: what networks look at, confusion matrices, and the images in which plans differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from foveate.data import ImageData
from foveate.explanations.explain import explain
from foveate.studies.comparison.config import BASELINE
from foveate.studies.comparison.results import Comparison
from foveate.studies.reporting.class_results import changed_images, confusion_of, hardest_images
from foveate.studies.reporting.html import saved_picture
from foveate.surgery.insert import attentions
from foveate.training.confusion_picture import picture

__all__ = ["changes", "confusions", "looked_at", "spread_over_classes"]

Pictures = Sequence[tuple[str, Image.Image]] | Sequence[tuple[str, bytes]]
Gallery = tuple[str, Pictures]

_CELLS = 8  # rows and columns of a map up to which its values are drawn as cells
_CONFUSED = 60  # classes whose names a confusion matrix can show
_SIDE = 256  # pixels of an image without a map


def looked_at(comparison: Comparison, data: ImageData, chosen: Sequence[int], overlays: Path) -> Iterator[Gallery]:
    """For each plan the maps of its own attention, and Grad-CAM, over some images; written to a folder, too."""
    pictures = [data.val.load(index) for index in chosen]
    true = [data.classes[data.val.label(index)] for index in chosen]
    for number, (label, model) in enumerate(comparison.models.items()):
        for method in ("attention", "gradcam"):
            if method == "attention" and not any(hasattr(m, "attend") for m in attentions(model).values()):
                continue
            found = explain(model, pictures, method, image_size=comparison.recipe.image_size)
            coarse = all(max(one.values.shape[-2:]) <= _CELLS for one in found.maps)
            gallery: list[tuple[str, bytes]] = []
            for k, index in enumerate(chosen):
                said = data.classes[int(found.predictions[k])]
                drawn = found.draw(k, true=true[k], smooth=not coarse)
                shown = saved_picture(drawn, overlays / f"{number}_{method}_{k}.png")
                gallery.append((f"{_said(true[k], said)}: {data.val.names[index]}", shown))
            yield _heading(label, method), gallery


def confusions(comparison: Comparison, classes: Sequence[str], plans: Sequence[str]) -> Gallery | None:
    """A confusion matrix for each plan, of all seeds together; None with more classes than can be read."""
    if comparison.labels is None or len(classes) > _CONFUSED:
        return None
    drawn: list[tuple[str, bytes]] = []
    for label in plans:
        counts = confusion_of(comparison.labels, comparison.predictions[label], len(classes))
        right = float(counts.diagonal().sum() / counts.sum())
        drawn.append((f"{label}: {len(comparison.seeds)} seeds together", picture(counts, classes, right)))
    return "Which classes are taken for which", drawn


def changes(comparison: Comparison, data: ImageData, plans: Sequence[str], most: int) -> Iterator[Gallery]:
    """The images that each plan has right more or less often than the first plan, and those that all have wrong."""
    if comparison.labels is None or not most:
        return
    labels, predictions = comparison.labels, {label: comparison.predictions[label] for label in plans}
    base = predictions[plans[0]]
    for label in plans[1:]:
        up, down = changed_images(labels, base, predictions[label], most)
        for indices, word in ((up, "gains"), (down, "loses")):
            if indices:
                gallery = [(_counts(comparison, data, index, label), _thumbnail(data, index)) for index in indices]
                yield f"{label}: images that it {word}", gallery
    hardest = hardest_images(labels, predictions, most)
    if hardest:
        gallery = []
        for index in hardest:
            said = _usual(predictions.values(), index)
            caption = f"{_said(data.classes[int(labels[index])], data.classes[said])}: {data.val.names[index]}"
            gallery.append((caption, _thumbnail(data, index)))
        yield "The hardest images: most networks have them wrong", gallery


def spread_over_classes(data: ImageData, count: int) -> list[int]:
    """Indices of validation images, class by class in turn, from the middle of each class."""
    of_class = [[i for i, label in enumerate(data.val.labels) if label == c] for c in range(len(data.classes))]
    queues = [members[len(members) // 2 :] for members in of_class]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def _heading(label: str, method: str) -> str:
    what = "where its attention lies" if method == "attention" else "what speaks for the predicted class (Grad-CAM)"
    return f"{'Without attention' if label == BASELINE else label}: {what}"


def _said(true: str, said: str) -> str:
    return f"true class {true}, predicted {said}{'' if true == said else ' (wrong)'}"


def _counts(comparison: Comparison, data: ImageData, index: int, label: str) -> str:
    """How many seeds have an image right, without attention and with a plan."""
    seeds = len(comparison.seeds)
    of = [int(comparison.correct[plan][:, index].sum()) for plan in (BASELINE, label)]
    name = data.classes[data.val.label(index)]
    right = f"right with {of[0]} of {seeds} seeds without attention, {of[1]} with it"
    return f"true class {name}; {right}: {data.val.names[index]}"


def _usual(predictions: Iterable[Tensor], index: int) -> int:
    """The class that is predicted most often."""
    return int(torch.cat([of[:, index] for of in predictions]).mode().values)


def _thumbnail(data: ImageData, index: int) -> Image.Image:
    image = data.val.load(index).convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    return image
