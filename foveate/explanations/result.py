"""What ``explain`` found: maps, channel weights, predictions; saved as pictures or as numbers."""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from foveate.errors import FoveateError
from foveate.explanations.dense.objects import ImageObjects, object_arrays
from foveate.html import html_lines, html_picture
from foveate.io import write_atomically
from foveate.progress import track
from foveate.scores import top_classes

__all__ = ["Explanation", "Map"]

_SHOWN = 8  # pictures in a notebook


@dataclass(frozen=True)
class Map:
    """One spatial map for each image.

    Attributes:
        name: what it is, as "blocks.5.2 subspace 1/4".
        values: (B, h, w), float32 on the CPU, as the method computed them: nothing is rescaled.
        module: the dotted name of the module that it belongs to.
        targets: (B,) the class that each image's map is of; None where the map does not depend on a class.
    """

    name: str
    values: Tensor
    module: str
    targets: Tensor | None = None

    @property
    def is_softmax(self) -> bool:
        """Whether each image's map sums to 1, as behind a softmax over the positions."""
        return bool(((self.values.sum(dim=(-2, -1)) - 1).abs() < 1e-3).all())


_NAMED = 8  # maps, in its line


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a network looked at in B images.

    Attributes:
        method: a name of ``METHODS``.
        names: a name for each image: the file's name without its ending, or "image".
        pictures: the images as the network saw them, resized and cropped.
        maps: the spatial maps, each (B, h, w).
        channels: names and channel weights, each (B, c), of modules that weigh channels.
        predictions: (B,) the index of the class with the largest logit.
        probabilities: (B,) its softmax probability.
        targets: (B,) the class that is explained; None where no map depends on a class.
        labels: the names of the classes; empty when the model does not tell.
        sources: the file of each image, or its name.
        scores: (B, classes) the softmax probability of each class.
        masks: of a segmentation network, (B, h, w) uint8, the class of each pixel. ``scores`` are then the shares of
            the pixels of each class, ``predictions`` the class of most pixels, and ``probabilities`` its share.
        objects: of a detector, what it found in each image. ``scores`` are then the best score of each class, 0 without
            an object, ``predictions`` the class of the best object, -1 without one, and ``probabilities`` its score.
    """

    method: str
    names: tuple[str, ...]
    pictures: tuple[Image.Image, ...]
    maps: tuple[Map, ...]
    channels: tuple[tuple[str, Tensor], ...]
    predictions: Tensor
    probabilities: Tensor
    targets: Tensor | None = None
    labels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    scores: Tensor | None = None
    masks: Tensor | None = None
    objects: tuple[ImageObjects, ...] = ()

    def __repr__(self) -> str:
        shown = [one.name for one in self.maps] + [name for name, _ in self.channels]
        of = f"{', '.join(shown[:_NAMED])}{', ...' * (len(shown) > _NAMED)}" or "none"
        return f"<Explanation by {self.method!r} of {len(self.names)} images; maps: {of}>"

    def label(self, index: int) -> str:
        """The name of a class, or "class N" when the model does not tell; of -1, "nothing"."""
        if index < 0:
            return "nothing"
        return self.labels[index] if index < len(self.labels) else f"class {index}"

    def top(self, index: int = 0, most: int = 5) -> dict[str, float]:
        """The classes of the largest probabilities in one image, and these, the largest first."""
        if self.scores is None:
            return {self.label(int(self.predictions[index])): float(self.probabilities[index])}
        if self.objects:
            found = sorted(zip(self.scores[index].tolist(), range(self.scores.shape[1]), strict=True), reverse=True)
            return {self.label(number): score for score, number in found[:most] if score > 0}
        first = int(self.predictions[index])  # softmax may have rounded its lead away
        others = [number for number in top_classes(self.scores[index : index + 1], most)[0].tolist() if number != first]
        chosen = [first, *others][: min(most, self.scores.shape[1])]
        return {self.label(number): float(self.scores[index, number]) for number in chosen}

    def overlay(self, number: int = 0, index: int = 0, *, opacity: float = 0.6, smooth: bool = True) -> Image.Image:
        """One map over one image, in the image's own size.

        Args:
            number: which of ``maps``.
            index: which image.
            opacity: of the map's colours, from 0 (the image in grey) to 1.
            smooth: enlarge the map bilinearly; else each of its values is a cell of one colour.

        Raises:
            FoveateError: there is no map or image of this number, or the opacity is not in 0..1.
        """
        from foveate.explanations.overlay import colours, picture_of

        if not (0 <= number < len(self.maps) and 0 <= index < len(self.pictures)):
            known = f"{len(self.maps)} maps of {len(self.pictures)} images"
            raise FoveateError(f"there is no map {number} of image {index}: the explanation holds {known}")
        if not 0 <= opacity <= 1:
            raise FoveateError(f"opacity={opacity}: give a number from 0, the image alone, to 1, the map alone")
        values = self.maps[number].values[index]
        return self._marked(index, picture_of(colours(self.pictures[index], values, opacity, smooth=smooth)))

    def _marked(self, index: int, picture: Image.Image) -> Image.Image:
        """A picture of an image, of any size, with the boxes that are explained."""
        if not self.objects or not self.objects[index].explained:
            return picture
        from foveate.explanations.mask_overlay import draw_boxes

        found = self.objects[index]
        chosen = list(found.explained)
        scale = picture.width / self.pictures[index].width
        return draw_boxes(picture, found.boxes[chosen] * scale, found.classes[chosen])

    def picture_with_classes(self, index: int = 0) -> Image.Image | None:
        """One image with what a network of pixels or objects found in it, in colour, and a legend; else None.

        Of pixels the class of each; of objects the boxes with a score of 0.5 or more and those that are explained,
        each with its number in the order of the scores.
        """
        from foveate.explanations.mask_overlay import labelled, objects_in

        picture = self.pictures[index]
        if self.masks is not None:
            return labelled(picture, self.masks[index], self.labels)
        return objects_in(picture, self.objects[index], self.labels) if self.objects else None

    def draw(self, index: int = 0, *, true: str = "", smooth: bool = True) -> Image.Image:
        """One image with all its maps laid over it, and its channel weights as bars.

        Args:
            index: which image.
            true: the name of its true class, to be shown beside the prediction, which is marked where it is wrong.
            smooth: enlarge maps bilinearly; else each of their values is a cell of one colour.

        Raises:
            FoveateError: there is no image of this index.
        """
        from foveate.explanations.overlay import Panel, draw

        if not 0 <= index < len(self.pictures):
            raise FoveateError(f"there is no image {index}: the explanation holds {len(self.pictures)}, counted from 0")
        predicted = self.label(int(self.predictions[index]))
        truth = [f"true: {true}"] * bool(true)
        mark = f" ({'right' if predicted == true else 'wrong'})" if true else ""
        what = ("predicted", "probability")
        if self.masks is not None:
            what = ("most pixels", "share of the pixels")
        elif self.objects:
            what = ("best object", "score")
        caption = (f"{what[0]}: {predicted}{mark}", f"{what[1]} {float(self.probabilities[index]):.3f}", *truth)
        panels = [
            Panel(
                found.name,
                found.values[index],
                found.module,
                self.label(int(found.targets[index])) if found.targets is not None else "",
                found.is_softmax,
            )
            for found in self.maps
        ]
        channels = [(name, weights[index]) for name, weights in self.channels]
        marked = functools.partial(self._marked, index)
        sheet = draw(self.pictures[index], caption, panels, channels, smooth=smooth, mark=marked)
        below = self.picture_with_classes(index)
        if below is None:
            return sheet
        from foveate.explanations.mask_overlay import under

        return under(sheet, below)

    def _repr_html_(self) -> str:
        shown = range(min(len(self.pictures), _SHOWN))
        pictures = [
            html_picture(
                self.draw(n), f"{self.names[n]}: {self.method}, predicted {self.label(int(self.predictions[n]))}"
            )
            for n in shown
        ]
        more = len(self.pictures) - len(shown)
        return "<br>".join(pictures) + html_lines("", [f"and {more} more images: save(folder) draws all"] * bool(more))

    def save(self, path: str | os.PathLike[str], *, progress: bool = False, smooth: bool = True) -> tuple[Path, ...]:
        """Write the drawings: one image into a PNG file, several into a folder of PNG files.

        A name that does not end in .png is a folder. Missing folders are made. A file of the same name is replaced as
        a whole, or not at all.

        Args:
            path: a file name that ends in .png, or a folder; the files in it are "001_NAME.png", "002_NAME.png", ...
            progress: show a bar.
            smooth: as in ``draw``.

        Returns:
            The files written.

        Raises:
            FoveateError: the path does not fit the number of images, is an image that is explained, or cannot be
                written.
        """
        path, count = Path(path), len(self.pictures)
        ending = "" if path.is_dir() else path.suffix.lower()
        if ending != ".png" and ending in Image.registered_extensions():
            raise FoveateError(f"cannot save to {str(path)!r}: drawings are PNG files; end the name in .png")
        if ending == ".png" and count > 1:
            raise FoveateError(f"cannot save {count} images to one file {str(path)!r}: name a folder, as 'overlays'")
        names = [f"{i:03d}_{name}.png" for i, name in enumerate(self.names, 1)]
        files = [path] if ending == ".png" else [path / name for name in names]
        originals = {os.path.realpath(source) for source in self.sources}
        for file in files:
            if os.path.realpath(file) in originals:
                raise FoveateError(f"the drawing would replace the image {file} itself: give it another name or folder")
        for index in track(range(count), "drawing", progress):
            png = io.BytesIO()
            self.draw(index, smooth=smooth).save(png, "PNG")
            write_atomically(files[index], png.getvalue())
        return tuple(files)

    def npz(self, path: str | os.PathLike[str]) -> Path:
        """Write the numbers as NumPy arrays, to be read with ``np.load(path, allow_pickle=False)``.

        The arrays: "map: NAME" (B, h, w) for each map, "channels: NAME" (B, c), "predictions", "probabilities",
        "targets" (B,), "names" (B,), "labels" (classes,), "method"; of a segmentation network "masks" (B, h, w); of a
        detector all objects in a row: "boxes" (n, 4), "box scores", "box classes", "box images", "explained" (n,).

        Raises:
            FoveateError: the name does not end in .npz, or cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise FoveateError(f"cannot save to {str(path)!r}: the numbers are one .npz file; end the name in .npz")
        arrays: dict[str, Any] = {f"map: {found.name}": found.values.numpy() for found in self.maps}
        arrays |= {f"channels: {name}": weights.numpy() for name, weights in self.channels}
        arrays |= {"predictions": self.predictions.numpy(), "probabilities": self.probabilities.numpy()}
        if self.targets is not None:
            arrays["targets"] = self.targets.numpy()
        if self.masks is not None:
            arrays["masks"] = self.masks.numpy()
        if self.objects:
            arrays |= object_arrays(self.objects)
        arrays |= {"names": np.array(self.names), "method": np.array(self.method)}
        arrays["labels"] = np.array(self.labels, dtype=np.str_)
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)
        write_atomically(path, data.getvalue())
        return path
