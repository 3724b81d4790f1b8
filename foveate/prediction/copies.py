"""Image files copied into a folder for each class; nothing is overwritten, and no class's name leads elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from foveate.errors import FoveateError
from foveate.io import make_folder

__all__ = ["Copies", "check_outside", "folder_name"]

_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows takes them for devices
_MOST_BYTES = 200  # of a name; file systems take 255


def folder_name(label: str) -> str:
    """A class's name as the name of one folder, on any file system: never empty, hidden, a path or the folder above."""
    name = _NOT_IN_NAMES.sub("_", unicodedata.normalize("NFC", label))
    name = name.encode()[:_MOST_BYTES].decode(errors="ignore").rstrip(" .").strip()
    if name[:1] in ("", ".") or _DEVICES.fullmatch(name):
        name = f"_{name}"
    return os.fsdecode(name.encode())  # UTF-8 also where the locale takes ASCII alone


def check_outside(folder: Path, sources: Sequence[Path], what: str) -> None:
    """Make sure that what is written into a folder is not read as an image again, and replaces none.

    Args:
        folder: to write into.
        sources: folders that images are read from meanwhile.
        what: is written.

    Raises:
        FoveateError: the folder lies in one of them.
    """
    real = Path(os.path.realpath(folder))
    for source in sources:
        if real.is_relative_to(os.path.realpath(source)):
            raise FoveateError(
                f"{what} in {folder} would be read as images of {source} again: name a folder outside of it"
            )


class Copies:
    """Copies files into ``folder/CLASS``.

    Args:
        folder: made when it does not exist.
        sources: folders that the files are found in while they are copied.

    Raises:
        FoveateError: the folder lies in one of them, so that copies would be found again, or cannot be made.
    """

    def __init__(self, folder: Path, sources: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._names: dict[str, str] = {}  # label -> the name of its folder
        self._next: dict[Path, int] = {}  # a name that was taken -> the number to try next
        check_outside(folder, sources, "copies")
        make_folder(folder)

    def add(self, path: Path | None, label: str, name: str) -> Path:
        """Copy one image's file.

        Args:
            path: of the file; None where the image has none of its own.
            label: its predicted class.
            name: what errors call the image.

        Returns:
            The copy.

        Raises:
            FoveateError: the image has no file of its own, or it cannot be copied; no part of it is left.
        """
        if path is None:
            raise FoveateError(f"{name} is not a file, so it cannot be copied to {self.folder}")
        folder = self.folder / self._name_of(label)
        make_folder(folder)
        wanted = folder / path.name
        try:
            return self._copy(path, wanted)
        except OSError as error:
            raise FoveateError(f"cannot copy {path} to {folder}: {error.strerror or error}") from error

    def _name_of(self, label: str) -> str:
        """The folder of a class, which no other class has, also where names in upper and lower case are the same."""
        if label not in self._names:
            taken = {name.casefold() for name in self._names.values()}
            name, number = folder_name(label), 2
            while name.casefold() in taken:
                name, number = f"{folder_name(label)}-{number}", number + 1
            self._names[label] = name
        return self._names[label]

    def _copy(self, source: Path, wanted: Path) -> Path:
        place, number = wanted, self._next.get(wanted, 2)
        while True:
            try:
                file = place.open("xb")  # never what is there already
                break
            except FileExistsError:
                place = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
                number += 1
                self._next[wanted] = number
        try:
            with file, source.open("rb") as original:
                shutil.copyfileobj(original, file)
            shutil.copystat(source, place)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        return place
