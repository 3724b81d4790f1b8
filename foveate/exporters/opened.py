"""An exported file as a classifier: what ``predict``, ``evaluate`` and ``latency`` take in a network's place."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.errors import FoveateError, near
from foveate.exporters.format import Arrays, Session, format_names, format_of_file
from foveate.exporters.metadata import preprocess_of
from foveate.exporters.sample_images import as_given
from foveate.html import html_lines, html_table
from foveate.images import Preprocess
from foveate.io import JsonObject
from foveate.scores import pixel_scores
from foveate.whole_images import WholeImage

__all__ = ["ExportedClassifier", "ExportedDetector", "ExportedSegmenter", "is_exported", "open_exported"]


class ExportedClassifier:
    """A file that ``export`` wrote, opened in its runtime; a :class:`foveate.classifier_protocol.Classifier`.

    Args:
        path: of the file.
        session: the opened file.
        format_name: of the file.

    Attributes:
        path: of the file.
        format: its format's name.
        metadata: what the file says of itself.
    """

    def __init__(self, path: Path, session: Session, format_name: str) -> None:
        self.path, self.format, self._session = path, format_name, session
        self.metadata: JsonObject = session.metadata
        self._preprocess = preprocess_of(session.metadata, path)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """A name for each of the K outputs, or None."""
        return tuple(map(str, self.metadata["classes"])) or None

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared."""
        return self._preprocess

    @property
    def batch(self) -> int | None:
        """The number of images in a call, or None for any number."""
        first = self.metadata["input"]["shape"][0]
        return first if isinstance(first, int) else None

    def logits(self, images: Tensor) -> Tensor:
        """The scores before the softmax.

        Args:
            images: (B, C, H, W) float32, normalised; where the file takes pixels they are made of these again.

        Returns:
            (B, K) float32.

        Raises:
            FoveateError: the runtime does not take them.
        """
        return torch.from_numpy(np.ascontiguousarray(self.run(as_given(images, self.metadata, self.preprocess))[0]))

    def run(self, images: NDArray[np.generic]) -> Arrays:
        """All outputs of the file, for images as it takes them, in the order of ``metadata["outputs"]``."""
        return self._session.run(images)

    def reopened(self, threads: int) -> ExportedClassifier:
        """The same file, computing with so many threads."""
        return open_exported(self.path, threads)

    def ready(self, images: Tensor) -> Callable[[], object]:
        """A function that runs the file once on these images, (B, C, H, W), normalised: for timing."""
        given = as_given(images, self.metadata, self.preprocess)
        return lambda: self.run(given)

    def _repr_html_(self) -> str:
        return html_lines(repr(self)) + html_table(("what the file says", ""), self.metadata.items(), right=())

    def __repr__(self) -> str:
        return f"<{self.metadata['architecture']} in {self.path}, {self.metadata['precision']}>"


class ExportedSegmenter(ExportedClassifier):
    """A file that ``export`` wrote of a segmentation network: scores for each pixel, (B, K, h, w).

    Args:
        path: of the file.
        session: the opened file.
        format_name: of the file.
    """

    def __init__(self, path: Path, session: Session, format_name: str) -> None:
        super().__init__(path, session, format_name)
        taken = self.metadata["input"]
        height = taken["shape"][str(taken["axes"]).split().index("h")]
        self._preparation = WholeImage(self.preprocess, exact=isinstance(height, int))

    @property
    def preparation(self) -> WholeImage:
        """How images are prepared: whole, the shorter side at a length, or in the one size that the file takes."""
        return self._preparation

    def sized(self, image_size: int) -> ExportedSegmenter:
        """The same for images whose shorter side is of another length.

        Raises:
            FoveateError: the file takes one size alone.
        """
        if self.preparation.exact:
            height, width = self.preprocess.size
            raise FoveateError(f"image_size={image_size}: {self.path} takes images of {height}x{width} pixels alone")
        other = copy.copy(self)
        other._preparation = WholeImage(replace(self.preprocess, size=(image_size, image_size)))
        return other

    def names(self, count: int) -> tuple[str, ...]:
        """Those that the file tells."""
        found = self.classes or ()
        return found if len(found) == count else ()

    def running(self) -> contextlib.AbstractContextManager[object]:
        """Nothing is to be kept."""
        return contextlib.nullcontext()

    def scores(self, images: Tensor) -> Tensor:
        """(B, K, h, w) float32 for normalised images (B, C, h, w), in batches as the file takes them."""
        size = self.batch or len(images)
        parts = []
        for part in torch.split(images, size):
            missing = size - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            parts.append(pixel_scores(self.logits(filled))[: len(part)].float())
        return torch.cat(parts)


class ExportedDetector(ExportedClassifier):
    """A file that ``export`` wrote of a detector: the objects of one image.

    Args:
        path: of the file.
        session: the opened file.
        format_name: of the file.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each class, or its number."""
        count = int(self.metadata["outputs"][2]["classes"])
        return self.classes or tuple(map(str, range(count)))

    @property
    def exact(self) -> bool:
        """Whether the file takes images of one size alone."""
        taken = self.metadata["input"]
        return isinstance(taken["shape"][str(taken["axes"]).split().index("h")], int)

    def logits(self, images: Tensor) -> Tensor:  # noqa: ARG002 - the interface of a classifier
        """There are none.

        Raises:
            FoveateError: always.
        """
        raise FoveateError(f"{self.path} is a detector, which gives boxes: use predict, or .objects(image)")

    def objects(self, image: Tensor) -> dict[str, Tensor]:
        """What the file finds in one normalised image (1, C, h, w): boxes (n, 4), scores (n,), labels (n,)."""
        return objects_of(self.run(as_given(image, self.metadata, self.preprocess)))


def objects_of(outputs: Arrays) -> dict[str, Tensor]:
    """What a detector's file gives for one image, as a detector gives it: without the rows that are left over.

    Raises:
        FoveateError: it is something else.
    """
    boxes, scores, labels = (torch.from_numpy(np.ascontiguousarray(output))[0] for output in outputs)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(scores) == len(labels):
        raise FoveateError(f"the file gives {tuple(boxes.shape)} boxes and {tuple(scores.shape)} scores")
    there = labels >= 0
    return {"boxes": boxes[there].float(), "scores": scores[there].float(), "labels": labels[there].long()}


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a path is, by its suffix, a file of a format that ``export`` writes."""
    return format_of_file(Path(path)) is not None


def open_exported(path: str | os.PathLike[str], threads: int | None = None) -> ExportedClassifier:
    """Open a file that ``export`` wrote. Nothing in it is executed but the network's own operations.

    Args:
        path: of the file.
        threads: to compute with; None for the runtime's own choice.

    Returns:
        The file in its runtime, which ``predict`` and ``evaluate`` take.

    Raises:
        FoveateError: there is no such file, foveate did not write it, or its runtime is not installed or cannot run it
            on this machine.
    """
    path = Path(path)
    form = format_of_file(path)
    if form is None:
        raise FoveateError(f"{path} is not an exported network; formats that are read: {', '.join(format_names())}")
    if not path.exists():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FoveateError(f"there is no file {path}; in {path.parent} {near(path.name, beside)}")
    form.check_installed()
    unable = form.runs_here()
    if unable:
        raise FoveateError(f"{path} cannot be run on this machine: {unable}")
    session = form.open(path, threads)
    kinds = {"segmentation": ExportedSegmenter, "detection": ExportedDetector}
    return kinds.get(str(session.metadata.get("task")), ExportedClassifier)(path, session, form.name)
