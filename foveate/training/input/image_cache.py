"""Decoded images of a split, kept so that no epoch decodes them again: in memory, or in a file that is mapped into it.

A random crop needs the whole picture, so what is kept are the pictures as ``Split.load`` gives them. Training on them
is bit for bit training on the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import FoveateError
from foveate.io import write_files
from foveate.progress import ProgressBar

if TYPE_CHECKING:
    from foveate.data.split import Split

__all__ = ["Decoded", "decode", "open_decoded"]

_AHEAD = 64  # images decoded at a time


@dataclass(frozen=True)
class Decoded:
    """Pictures in one flat array.

    Args:
        pixels: (total,) uint8.
        starts: where each picture begins.
        sizes: height and width of each.
    """

    pixels: NDArray[np.uint8]
    starts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]

    def array(self, index: int) -> NDArray[np.uint8]:
        """The pixels of one picture, (H, W, 3), as they lie here."""
        height, width = self.sizes[index]
        start = self.starts[index]
        return np.asarray(self.pixels[start : start + 3 * height * width]).reshape(height, width, 3)

    def image(self, index: int) -> Image.Image:
        """One RGB picture."""
        return Image.fromarray(self.array(index))


def _arrays(split: Split, at_least: int | None, bar: ProgressBar) -> Iterator[NDArray[np.uint8]]:
    """Every picture (H, W, 3) in order, decoded on two threads: Pillow decodes outside Python's lock."""

    def load(index: int) -> NDArray[np.uint8]:
        return np.asarray(split.load(index, at_least))

    task = bar.task(f"decoding the {split.name} images, once", len(split))
    try:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for at in range(0, len(split), _AHEAD):
                yield from pool.map(load, range(at, min(at + _AHEAD, len(split))))
                bar.advance(task, min(_AHEAD, len(split) - at))
    finally:
        bar.end(task)


def decode(split: Split, at_least: int | None, limit_bytes: int, bar: ProgressBar) -> Decoded | None:
    """Decode a split into memory; None where the pictures need more than ``limit_bytes``.

    Raises:
        FoveateError: an image cannot be read.
    """
    held: list[NDArray[np.uint8]] = []
    total = 0
    for array in _arrays(split, at_least, bar):
        total += array.nbytes
        if not held and array.nbytes * len(split) > 4 * limit_bytes:  # no need to try: four times as small is rare
            return None
        if total > limit_bytes:
            return None
        held.append(array)
    pixels = np.empty(total, np.uint8)
    at, starts, sizes = 0, [], []
    for number, array in enumerate(held):
        pixels[at : at + array.nbytes] = array.reshape(-1)
        starts.append(at)
        sizes.append((array.shape[0], array.shape[1]))
        at += array.nbytes
        held[number] = array[:0]  # let go of it: else everything would be there twice
    return Decoded(pixels, tuple(starts), tuple(sizes))


def open_decoded(split: Split, at_least: int | None, folder: Path, key: str, bar: ProgressBar) -> Decoded:
    """Pictures of a split in a file, which is made if it is not there. The file is whole or not there.

    Args:
        split: the images.
        at_least: as for ``Split.load``.
        folder: for the file and its index.
        key: of everything that the pictures depend on.
        bar: shows the progress.

    Raises:
        FoveateError: an image cannot be read, or the folder cannot be written.
    """
    path, index = folder / f"{key}.pixels", folder / f"{key}.json"
    found = _opened(path, index)
    if found is not None:
        return found
    sizes: list[tuple[int, int]] = []

    def write_pixels(place: Path) -> None:
        with place.open("wb") as file:
            for array in _arrays(split, at_least, bar):
                file.write(array.tobytes())
                sizes.append((array.shape[0], array.shape[1]))

    def write_index(place: Path) -> None:
        place.write_text(json.dumps(sizes))

    # The index is put in place last: without it the pixels do not count.
    advice = "free some space, name another folder for the decoded images, or take cache=False"
    write_files({path: write_pixels, index: write_index}, advice=advice)
    made = _opened(path, index)
    if made is None:
        raise FoveateError(f"{path} changed while it was written: give this run a cache folder of its own")
    return made


def _opened(path: Path, index: Path) -> Decoded | None:
    try:
        sizes = tuple((int(height), int(width)) for height, width in json.loads(index.read_text("utf-8")))
        ends = np.cumsum([3 * height * width for height, width in sizes], dtype=np.int64).tolist()
        if not sizes or path.stat().st_size != ends[-1]:
            return None
        return Decoded(np.memmap(path, np.uint8, "r"), (0, *ends[:-1]), sizes)
    except (OSError, ValueError, TypeError):
        return None
