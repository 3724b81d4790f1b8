"""What a user gives as images, as a stream of pictures that can be decoded one by one."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError
from foveate.image_files import files_of, walk_images
from foveate.image_formats import NOT_READ, SUFFIXES
from foveate.images import open_image

__all__ = ["Images", "Inputs", "Item", "OneImage"]

OneImage = str | os.PathLike[str] | bytes | Image.Image
Images = OneImage | Split | Iterable[OneImage]


@dataclass(frozen=True)
class Item:
    """One picture that is not decoded yet.

    Args:
        name: the path, the name in the data set, or "image N", counted from 1.
        load: decodes it; raises FoveateError.
        path: its file, where it has one of its own.
        changeable: somebody else holds the picture and may change it: it is to be decoded at once.
    """

    name: str
    load: Callable[[], Image.Image]
    path: Path | None = None
    changeable: bool = False


class Inputs:
    """The pictures in the order in which they were given, each made when its turn comes.

    Args:
        images: a path (a file, a folder and what is below it, a pattern), an encoded image's bytes, a PIL image, a part
            of a data set, or any iterable of paths, bytes and PIL images, of which none is held.

    Attributes:
        folders: the folders among them.

    Raises:
        FoveateError: a single path leads to nothing, a list is empty, or it is something else.
    """

    def __init__(self, images: Images) -> None:
        self.folders: list[Path] = []
        self.images: Split | Iterable[OneImage]
        if isinstance(images, ImageData):
            raise FoveateError("a data set has two parts: name one, as data.val")
        if isinstance(images, Split):
            self.images = images
        elif isinstance(images, str | os.PathLike):
            _require(images)
            self.images = [images]
        elif isinstance(images, bytes | Image.Image):
            self.images = [images]
        elif isinstance(images, Iterable) and not type(images).__module__.startswith(("torch", "numpy")):
            self.images = images
        else:
            raise FoveateError(
                f"images are paths, bytes, PIL images, or an iterable of these, not {type(images).__name__}"
            )
        if isinstance(self.images, Split | Sequence) and not len(self.images):
            raise FoveateError("there is no image to predict: the list is empty; give a path or a list of paths")
        for source in self.images if isinstance(self.images, Sequence) else ():
            if isinstance(source, str | os.PathLike) and Path(source).is_dir():
                self.folders.append(Path(source))

    def count(self) -> int | None:
        """How many pictures there are, without a look into them; None of an iterable that can be read once."""
        if isinstance(self.images, Split):
            return len(self.images)
        if not isinstance(self.images, Sequence):
            return None
        return sum(self._count_of(source) for source in self.images)

    def _count_of(self, source: Any) -> int:
        if not isinstance(source, str | os.PathLike):
            return 1
        if Path(source).is_dir():
            return sum(1 for _ in walk_images(source, unreadable=lambda *_: None))
        return len(glob.glob(os.fspath(source), recursive=True)) if _is_pattern(source) else 1  # noqa: PTH207 - "**" as in a shell

    def __iter__(self) -> Iterator[Item]:
        if isinstance(self.images, Split):
            yield from _of_split(self.images)
            return
        number, images = 0, iter(self.images)
        while True:
            try:
                source = next(images)
            except StopIteration:
                return
            except OSError as error:  # else it would seem to be the disk that results are written to
                raise FoveateError(f"the images ended after {number}: {error}") from error
            for item in self._items(source, number + 1):
                number += 1
                yield item

    def _items(self, source: OneImage, number: int) -> Iterator[Item]:
        if isinstance(source, str | os.PathLike):
            yield from _below(source) if Path(source).is_dir() else _of_path(source)
        elif isinstance(source, bytes):
            name = f"image {number}"
            yield Item(name, lambda: open_image(source, name=name))
        elif isinstance(source, Image.Image):
            name = f"image {number}"
            yield Item(name, lambda: open_image(source, name=name), changeable=True)
        else:
            raise FoveateError(f"image {number} is a {type(source).__name__}: give a path, bytes or a PIL image")


def _of_file(path: Path) -> Item:
    return Item(str(path), lambda: open_image(path), path)


def _not_an_image(name: str, reason: str) -> Item:
    """What fails in its turn, as an image that cannot be read does."""

    def fail() -> Image.Image:
        raise FoveateError(f"{name}: {reason}")

    return Item(name, fail)


def _of_path(source: str | os.PathLike[str]) -> Iterator[Item]:
    """A file, or those that a pattern matches."""
    try:
        paths = files_of(source)
    except FoveateError as error:
        yield _not_an_image(os.fspath(source), str(error))
    else:
        yield from map(_of_file, paths)


def _below(folder: str | os.PathLike[str]) -> Iterator[Item]:
    """The images in a folder and below it, and what of it cannot be read."""
    unreadable: list[tuple[str, str]] = []
    found = False
    for path in walk_images(folder, SUFFIXES + NOT_READ, lambda *bad: unreadable.append(bad)):
        yield from (_not_an_image(*bad) for bad in unreadable)
        unreadable.clear()
        found = True
        if path.name.lower().endswith(SUFFIXES):
            yield _of_file(path)
        else:
            yield _not_an_image(str(path), f"images of the format {path.suffix} are not read")
    yield from (_not_an_image(*bad) for bad in unreadable)
    if not found and not unreadable:
        yield _not_an_image(os.fspath(folder), "the folder holds no image")


def _is_pattern(source: str | os.PathLike[str]) -> bool:
    return glob.has_magic(os.fspath(source)) and not Path(source).exists()


def _require(source: str | os.PathLike[str]) -> None:
    """Refuse a path that leads to nothing, before anything is computed."""
    path = Path(source)
    if path.is_dir():
        if next(walk_images(path, SUFFIXES + NOT_READ, lambda *_: None), None) is None:
            raise FoveateError(f"the folder {str(path)!r} holds no image ({', '.join(SUFFIXES[:5])}, ...)")
    elif _is_pattern(source):
        files_of(source)
    elif not path.exists():
        open_image(path)  # says what is there, and what comes near


def _of_split(split: Split) -> Iterator[Item]:
    for index, (source, name) in enumerate(zip(split.sources, split.names, strict=True)):
        path = Path(source) if isinstance(source, str) else None
        yield Item(str(path or name), lambda index=index: split.load(index), path)  # type: ignore[misc] # the loop's own
