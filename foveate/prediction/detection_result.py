"""What a detector finds in images, as it comes: as text, as COCO JSON, as pictures with boxes and a legend."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from foveate.data.detection.masks import InstanceMasks
from foveate.errors import FoveateError, printable
from foveate.explanations.mask_overlay import draw_boxes, draw_masks, palette
from foveate.html import html_lines
from foveate.io import JsonObject, json_text, make_folder, write_atomically
from foveate.prediction.inputs import Item

__all__ = ["Detections", "ImageDetections"]

_THRESHOLD = 0.5  # of what pictures show
_LINE = 12  # pixels of a line of the legend


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """What a detection network finds in one image.

    Args:
        name: the image's path, its name in the data set, or "image N".
        boxes: (n, 4) left, top, right and bottom in pixels of the image, the highest score first.
        scores: (n,), 0 to 1.
        classes: (n,) int64.
        labels: a name for each class of the network.
        size: height and width of the image.
        path: the image's file, where it has one of its own.
        item: decodes the image again, for pictures.
        masks: of each object, in pixels of the image; None where the network has none. ``masks.array()`` is (n, H, W),
            1 where a pixel belongs to the object.
    """

    name: str
    boxes: Tensor = field(repr=False)
    scores: Tensor = field(repr=False)
    classes: Tensor = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    size: tuple[int, int]
    path: Path | None = field(default=None, repr=False)
    item: Item | None = field(default=None, repr=False)
    masks: InstanceMasks | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __str__(self) -> str:
        sure = [self.labels[label] for label in self.classes[self.scores >= _THRESHOLD].tolist()]
        counts = ", ".join(f"{count} {label}" for label, count in Counter(sure).most_common())
        return printable(f"{self.name}: {counts or 'nothing'} (score {_THRESHOLD:g} or more)")

    def to_dict(self) -> JsonObject:
        """The objects as plain values, for JSON: class, score, the box as left, top, width and height, and the mask.

        Masks are COCO's compressed run lengths, a dictionary ``segmentation`` of each object.
        """
        rows = zip(self.classes.tolist(), self.scores.tolist(), self._placed(), strict=True)
        found: list[JsonObject] = [
            {"class": self.labels[label], "score": score, "bbox": place} for label, score, place in rows
        ]
        for one, mask in zip(found, self.masks.to_coco() if self.masks is not None else (), strict=False):
            one["segmentation"] = mask
        return {"path": self.name, "objects": found}

    def _placed(self) -> list[list[float]]:
        left, top, right, bottom = self.boxes.unbind(1)
        sides = zip(left.tolist(), top.tolist(), (right - left).tolist(), (bottom - top).tolist(), strict=True)
        return [[round(side, 2) for side in of] for of in sides]

    def picture(self, threshold: float = _THRESHOLD) -> Image.Image:
        """The image with boxes, and masks, in the colours of their classes, and a legend below it.

        Args:
            threshold: objects with a lower score are left out.

        Raises:
            FoveateError: the image cannot be decoded any more.
        """
        if self.item is None:
            raise FoveateError(f"{self.name}: there is no image to draw on")
        sure = self.scores >= threshold
        image = self.item.load()
        if self.masks is not None:
            shown_masks = self.masks.subset(sure.nonzero()[:, 0].tolist()).array()
            image = draw_masks(image, shown_masks, self.classes[sure])
        image = draw_boxes(image, self.boxes[sure], self.classes[sure])
        colours = palette(len(self.labels))
        shown: Counter[int] = Counter(self.classes[sure].tolist())
        lines = [(label, f"{self.labels[label]} ({count})") for label, count in shown.most_common()]
        page = Image.new("RGB", (image.width, image.height + (len(lines) or 1) * (_LINE + 4) + 4), "white")
        page.paste(image)
        legend, top = ImageDraw.Draw(page), image.height + 4
        for label, text in lines:
            legend.rectangle([4, top, 4 + _LINE, top + _LINE], fill=_colour(colours, label))
            legend.text((10 + _LINE, top), printable(text).encode("latin-1", "replace").decode("latin-1"), fill="black")
            top += _LINE + 4
        if not lines:
            legend.text((4, top), f"nothing with a score of {threshold:g} or more", fill="black")
        return page


class Detections:
    """The objects of images in the order of the images, computed as they are read, once.

    Args:
        stream: computes them.
        bad: (name, reason) of the images that could not be predicted so far; the stream adds to it.
        labels: a name for each class.
    """

    def __init__(self, stream: Iterator[ImageDetections], bad: list[tuple[str, str]], labels: tuple[str, ...]) -> None:
        self._stream, self._bad, self.labels = stream, bad, labels

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of each image that could not be predicted, so far."""
        return tuple(self._bad)

    def __iter__(self) -> Iterator[ImageDetections]:
        return self._stream

    def __repr__(self) -> str:
        return f"<Detections: computed as they are read, {len(self._bad)} images bad so far>"

    def _repr_html_(self) -> str:
        """How to get them, and what could not be predicted so far; nothing is computed."""
        reasons = [reason if name in reason else f"{name}: {reason}" for name, reason in self._bad]
        return html_lines("objects, computed as they are read: iterate, or .write(file)", reasons)

    def write(
        self,
        path: str | os.PathLike[str],
        *,
        pictures: str | os.PathLike[str] | None = None,
        threshold: float = _THRESHOLD,
    ) -> int:
        """Write all objects as one COCO JSON file, each with its score, whole or not at all.

        Masks stand in it as compressed run lengths, which pycocotools and ``open_detection`` read.

        Args:
            path: a name that ends in .json.
            pictures: a folder, for a PNG of each image with its boxes and a legend.
            threshold: of the pictures; the file holds all objects.

        Returns:
            How many images it has.

        Raises:
            FoveateError: the name ends in something else, or a file cannot be written.
        """
        place = Path(path)
        if place.suffix.lower() != ".json":
            raise FoveateError(f"{place}: boxes are written as COCO JSON, so name a .json file")
        images: list[JsonObject] = []
        annotations: list[JsonObject] = []
        for one in self:
            number = len(images) + 1
            images.append(
                {"id": number, "file_name": self._name(one, place), "width": one.size[1], "height": one.size[0]}
            )
            rows = zip(one.classes.tolist(), one.scores.tolist(), one._placed(), strict=True)
            annotations += [
                {
                    "id": len(annotations) + at,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                    "score": score,
                }
                for at, (label, score, box) in enumerate(rows, 1)
            ]
            if one.masks is not None:
                of_image = zip(annotations[-len(one) :], one.masks.to_coco(), one.masks.areas(), strict=True)
                for entry, mask, area in of_image if len(one) else ():
                    entry.update(segmentation=mask, area=area)
            if pictures is not None:
                self._draw(one, Path(pictures) / f"{number:06d}_{Path(one.name).stem or 'image'}.png", threshold)
        categories = [{"id": number, "name": label} for number, label in enumerate(self.labels, 1)]
        content = json_text({"images": images, "annotations": annotations, "categories": categories})
        write_atomically(place, content.encode())
        return len(images)

    @staticmethod
    def _name(one: ImageDetections, place: Path) -> str:
        """Relative to the file's folder where the image lies in it, so that the two can be moved together."""
        folder = place.absolute().parent
        path = one.path.absolute() if one.path is not None else None
        return path.relative_to(folder).as_posix() if path and path.is_relative_to(folder) else one.name

    @staticmethod
    def _draw(one: ImageDetections, place: Path, threshold: float) -> None:
        make_folder(place.parent)
        picture = one.picture(threshold)
        write_atomically(place, lambda file: picture.save(file, "PNG"))


def _colour(colours: list[int], label: int) -> tuple[int, ...]:
    return tuple(colours[3 * label : 3 * label + 3])
