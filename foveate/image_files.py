"""From a path to the image files that it means: itself, those below a folder, or those that a pattern matches."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from foveate.errors import FoveateError
from foveate.image_formats import SUFFIXES

__all__ = ["files_of", "images_by_name", "is_system", "walk_images"]

_SYSTEM = ("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r")


def is_system(name: str) -> bool:
    """Whether an operating system or a file server made this file or folder for itself."""
    return name.lower() in _SYSTEM or name.lower() in _SYSTEM_FILES


def walk_images(
    folder: str | os.PathLike[str],
    suffixes: tuple[str, ...] = SUFFIXES,
    unreadable: Callable[[str, str], None] | None = None,
) -> Iterator[Path]:
    """The image files in a folder and below it, in the order of their paths, without a list of all of them in memory.

    Hidden files and folders and those of the system are left out. Links are followed; a folder is entered once.

    Args:
        folder: the folder.
        suffixes: how the names end, in lower case.
        unreadable: called with (folder, reason) for a folder that cannot be listed; without it that is an error.

    Raises:
        FoveateError: a folder cannot be listed.
    """
    return _below(os.fspath(folder), suffixes, unreadable, set())


def _below(
    folder: str, suffixes: tuple[str, ...], unreadable: Callable[[str, str], None] | None, entered: set[str]
) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in entered:
        return
    entered.add(real)
    try:
        with os.scandir(folder) as listing:
            entries = sorted((entry.name, entry.is_dir()) for entry in listing if _is_usable(entry))
    except OSError as error:
        reason = f"the folder cannot be read: {error.strerror or error}"
        if unreadable is None:
            raise FoveateError(f"{folder}: {reason}") from error
        unreadable(folder, reason)
        return
    for name, is_folder in entries:
        path = os.path.join(folder, name)  # noqa: PTH118 - a Path for each file that is not an image costs time
        if name[0] == "." or is_system(name):
            continue
        if is_folder:
            yield from _below(path, suffixes, unreadable, entered)
        elif name.lower().endswith(suffixes):
            yield Path(path)


def _is_usable(entry: os.DirEntry[str]) -> bool:
    """Whether it can be opened without waiting: not a pipe or a device. A link to nowhere is passed on, to be named."""
    return entry.is_file() or entry.is_dir() or entry.is_symlink()


def images_by_name(folder: Path, suffixes: tuple[str, ...] = SUFFIXES, *, flat: bool = False) -> dict[str, Path]:
    """The image files in a folder and below it, by their paths from it without suffix.

    Args:
        folder: the folder.
        suffixes: how the names end, in lower case.
        flat: by their names alone, wherever they lie.

    Raises:
        FoveateError: two files have one such name: what is written for it could be of either.
    """
    found: dict[str, Path] = {}
    for path in walk_images(folder, suffixes):
        name = path.stem if flat else path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise FoveateError(
                f"{found[name]} and {path} are both called {name!r}, and a label map or an annotation of that name may "
                "be of either: rename or remove one"
            )
        found[name] = path
    return found


def files_of(source: str | os.PathLike[str]) -> list[Path]:
    """The image files that a path means: itself, those in a folder and below it, or those that a pattern matches.

    Raises:
        FoveateError: the folder holds no image, or the pattern matches none.
    """
    path = Path(source)
    if path.is_dir():
        found = list(walk_images(path))
        if not found:
            raise FoveateError(f"the folder {str(path)!r} holds no image ({', '.join(SUFFIXES[:5])}, ...)")
        return found
    if not path.exists() and glob.has_magic(str(source)):
        found = sorted(Path(name) for name in glob.glob(str(source), recursive=True))  # noqa: PTH207 - "**" as in a shell
        found = [file for file in found if file.suffix.lower() in SUFFIXES and file.is_file()]
        if not found:
            raise FoveateError(f"no image matches {str(source)!r}: a pattern is such as 'photos/*.jpg'")
        return found
    return [path]
