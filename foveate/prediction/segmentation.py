"""Segmentation networks: a class for every pixel of an image, and how good they are where the classes are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.data.segmentation import SegmentationData, SegmentationSplit
from foveate.errors import FoveateError, printable
from foveate.explanations.mask_overlay import draw_classes, legend, palette
from foveate.html import html_lines
from foveate.io import make_folder, write_atomically
from foveate.prediction.copies import check_outside
from foveate.prediction.inputs import Images, Inputs
from foveate.prediction.pixels import NetworkPixels, PixelModel, TestTime, image_scores, open_pixels
from foveate.progress import ProgressBar
from foveate.training.input.sampler import Batch, images_in
from foveate.training.input.segmentation import MapLoader
from foveate.training.tasks.segmentation_metrics import SegmentationEvaluation, collect_counts, measure_counts

__all__ = ["Mask", "Masks", "evaluate_segmenter", "palette", "predict_masks"]


@dataclass(frozen=True, eq=False)
class Mask:
    """What a segmentation network says of one image.

    Args:
        name: the image's path, its name in the data set, or "image N".
        classes: (H, W) uint8, the class of each pixel of the image.
        labels: a name for each class.
        path: the image's file, where it has one of its own.
    """

    name: str
    classes: Tensor = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    path: Path | None = field(default=None, repr=False)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the pixels of each class that is there, the largest first."""
        counts = self.classes.flatten().long().bincount(minlength=len(self.labels)).tolist()
        found = {label: count / self.classes.numel() for label, count in zip(self.labels, counts, strict=True) if count}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        return printable(f"{self.name}: {', '.join(f'{label} {share:.1%}' for label, share in self.shares.items())}")

    def picture(self) -> Image.Image:
        """A palette picture whose numbers are the classes."""
        picture = Image.fromarray(np.asarray(self.classes))
        picture.putpalette(palette(len(self.labels)))
        return picture

    def overlay(self, image: Image.Image) -> Image.Image:
        """The classes in colour over the image, and below it the names of those that are there."""
        drawn = draw_classes(image, self.classes)
        names = legend(sorted(set(self.classes.flatten().tolist())), self.labels, max(image.width, 120))
        sheet = Image.new("RGB", (names.width, drawn.height + 6 + names.height), "white")
        sheet.paste(drawn, (0, 0))
        sheet.paste(names, (0, drawn.height + 6))
        return sheet

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture as PNG.

        Raises:
            FoveateError: the name ends in something else, it is the image's own, or the file cannot be written.
        """
        place = Path(path)
        if place.suffix.lower() != ".png":
            raise FoveateError(f"{place}: a mask is written as .png, which keeps its numbers")
        if self.path is not None and os.path.realpath(place) == os.path.realpath(self.path):
            raise FoveateError(
                f"the mask of {self.path} would replace the image itself: give it another name or folder"
            )
        write_atomically(place, lambda file: self.picture().save(file, "PNG"))
        return place


class Masks:
    """Masks in the order of the images, computed as they are read, once.

    Args:
        stream: computes them.
        bad: (name, reason) of the images that could not be predicted so far; the stream adds to it.
        folders: where the images come from.
    """

    def __init__(self, stream: Iterator[Mask], bad: list[tuple[str, str]], folders: list[Path]) -> None:
        self._stream, self._bad, self._folders = stream, bad, folders

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of each image that could not be predicted, so far."""
        return tuple(self._bad)

    def __iter__(self) -> Iterator[Mask]:
        return self._stream

    def __repr__(self) -> str:
        return f"<Masks: computed as they are read, {len(self._bad)} images bad so far>"

    def _repr_html_(self) -> str:
        """How to get them, and what could not be predicted so far; nothing is computed."""
        reasons = [reason if name in reason else f"{name}: {reason}" for name, reason in self._bad]
        return html_lines("masks, computed as they are read: iterate, or .write(folder)", reasons)

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each mask as a PNG that is called as its image, into a folder.

        An image that lies below a folder that was given keeps its place below the new one; of two images of one name
        the second one's mask gets a number.

        Returns:
            The files written.

        Raises:
            FoveateError: the folder lies in one that images are read from, a mask would replace its image, or a file
                cannot be written.
        """
        check_outside(Path(folder), self._folders, "masks")
        written: list[Path] = []
        taken: set[Path] = set()
        for mask in self:
            first = place = (Path(folder) / self._place(mask)).with_suffix(".png")
            number = 1
            while place in taken:
                number += 1
                place = first.with_name(f"{first.stem}_{number}.png")
            taken.add(place)
            make_folder(place.parent)
            written.append(mask.save(place))
        return written

    def _place(self, mask: Mask) -> Path:
        """Below the folder of all masks."""
        if mask.path is not None:
            for folder in self._folders:
                if folder in mask.path.parents:
                    return mask.path.relative_to(folder)
        return Path(Path(mask.name).name or "image")


def predict_masks(
    network: object,
    images: Images,
    *,
    image_size: int | None = None,
    strict: bool = False,
    progress: bool = False,
    test_time: TestTime | None = None,
) -> Masks:
    """Say of which class each pixel of images is. Nothing is computed before the result is read.

    Args:
        network: for segmentation, used in evaluation mode on the device where it is; or an exported file.
        images: as ``predict`` takes them.
        image_size: the shorter side of what the network sees, in pixels, instead of the model's own. A mask has the
            size of its image.
        strict: stop at the first image that cannot be read. Without it such images are listed in ``bad``.
        progress: show a bar.
        test_time: in how many views an image is shown; without it once, whole.

    Returns:
        The masks, in the order of the images: iterate, or ``.write("masks/")``.

    Raises:
        FoveateError: there is no such image, or the network gives no scores for pixels.
    """
    inputs = Inputs(images)
    bad: list[tuple[str, str]] = []
    model, shown_as = open_pixels(network, image_size), test_time or TestTime()

    def stream() -> Iterator[Mask]:
        with ProgressBar(progress) as bar:
            task = bar.task("predicting", inputs.count() if progress else None)
            for item in inputs:
                try:
                    mask = Mask(item.name, *_classes(model, item.load(), shown_as), item.path)
                except FoveateError as error:
                    if strict:
                        raise
                    bad.append((item.name, str(error)))
                else:
                    yield mask
                bar.advance(task, 1)

    return Masks(stream(), bad, inputs.folders)


def _classes(model: PixelModel, image: Image.Image, test_time: TestTime) -> tuple[Tensor, tuple[str, ...]]:
    with model.running():
        whole = image_scores(model, image, test_time)
    if not whole.isfinite().all():
        raise FoveateError("the model's scores are NaN or infinite")
    count = whole.shape[1]
    names = model.names(count) or tuple(map(str, range(count)))
    return whole[0].argmax(0).to(torch.uint8).cpu(), names


def evaluate_segmenter(
    network: object,
    data: SegmentationData | SegmentationSplit,
    *,
    part: str = "val",
    image_size: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
    test_time: TestTime | None = None,
    boundary: bool = False,
) -> SegmentationEvaluation:
    """Measure a segmentation network on images with label maps, at their own size. The model is left as found.

    Args:
        network: for segmentation, or an exported file.
        data: both parts, or one.
        part: of data that is not a part: "val" or "train".
        image_size: as in ``predict_masks``.
        batch_size: images in a step, as far as they have one size; a file, or several views, take one at a time.
        workers: processes that load images for a network that is shown each once.
        progress: show a bar.
        test_time: in how many views an image is shown; without it once, whole.
        boundary: measure boundary IoU, too.

    Raises:
        FoveateError: it has other classes, or an image or a label map cannot be read.
        Diverged: a score is NaN or infinite.
    """
    if part not in ("val", "train"):
        raise FoveateError(f"part {part!r}: of images with label maps it is 'val' or 'train'")
    model, shown_as = open_pixels(network, image_size), test_time or TestTime()
    split = data if isinstance(data, SegmentationSplit) else getattr(data, part)
    names = model.names(len(split.classes))
    if names and names != split.classes:
        raise FoveateError(
            f"the model's classes ({', '.join(names[:12])}) are not the data's ({', '.join(split.classes[:12])}) in "
            "the same order: give data of the model's classes, or train the model on this data"
        )
    with model.running(), ProgressBar(progress) as bar:
        if isinstance(model, NetworkPixels) and shown_as.single:
            loader = MapLoader(split, model.preparation.preprocess, workers=workers)
            batches: Iterator[Batch] = loader.whole(batch_size)

            def forward(inputs: Any) -> Tensor:
                return model.scores(loader.prepared(inputs, model.device))
        else:
            batches = _one_by_one(split)

            def forward(inputs: Any) -> Tensor:
                return image_scores(model, inputs, shown_as)

        shown = bar.track(batches, f"evaluating on {split.name}", len(split), images_in)
        found = collect_counts(forward, shown, len(split.classes), boundary=boundary)
    return measure_counts(found, split.classes)


def _one_by_one(split: SegmentationSplit) -> Iterator[Batch]:
    """Each image, not yet prepared, with its label map (1, H, W)."""
    for index in range(len(split)):
        image: Any = split.load(index)
        yield image, torch.from_numpy(np.array(split.target(index)))[None]
