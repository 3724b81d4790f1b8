"""Finding the images below class folders, each file once, and counting every file that is not one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from foveate.data.parts import NOT_READ_REASON, Unused
from foveate.data.split import Split
from foveate.errors import FoveateError, near
from foveate.image_files import is_system
from foveate.images import NOT_READ, SUFFIXES

__all__ = ["Scan"]


class Scan:
    """Collects the images below class folders.

    Args:
        root: of the data set; names are relative to it.
        classes: names of the classes.
        unused: gets every file that is not used.
    """

    def __init__(self, root: Path, classes: tuple[str, ...], unused: Unused) -> None:
        self.root, self.classes, self.unused = root, classes, unused
        self.seen: dict[str, str] = {}  # resolved path -> "part, class" it was found in
        self.merged: list[str] = []
        self._start = len(str(root / "x")) - 1

    def name(self, path: str) -> str:
        """Of a file, relative to the data set's folder."""
        return path[self._start :].replace(os.sep, "/")

    def split(self, part: str, kinds: dict[str, list[Path]]) -> Split:
        """Images of all the classes of one part, in the order of their paths.

        Raises:
            FoveateError: a class is unknown, one file stands in two classes, or a folder cannot be read.
        """
        rows: list[tuple[str, int]] = []
        every = [folder for folders in kinds.values() for folder in folders]
        # No class is entered through a link that lies in another one.
        entered = {os.path.realpath(folder) for folder in (self.root, *every)}
        entered |= {os.path.realpath(folder.parent) for folder in every}
        for kind, folders in kinds.items():
            if len(folders) > 1:
                self.merged.append(f"{len(folders)} folders of {part} are called {kind}, one class")
            paths = [
                path for folder in folders for path in self._new_images(str(folder), entered, f"{part}, class {kind}")
            ]
            if not paths:
                continue
            if kind not in self.classes:
                raise FoveateError(f"class {kind!r} of {folders[0]} is not in training: {near(kind, self.classes)}")
            rows += [(path, self.classes.index(kind)) for path in paths]
        names = tuple(self.name(path) for path, _ in rows)
        return Split(part, tuple(path for path, _ in rows), tuple(label for _, label in rows), names)

    def leave_out(self, folder: Path, reason: str) -> None:
        """Count every file below a folder as not used; links to folders are not followed."""
        for here, folders, files in os.walk(folder):
            folders.sort()
            self.unused.add(reason, (self.name(os.path.join(here, file)) for file in sorted(files)))

    def leave_out_files(self, folder: Path, reason: str) -> None:
        """Count the files that lie in a folder itself, except a description of the data set."""
        for entry in sorted(folder.iterdir()):
            if entry.is_file() and not self._is_hidden(entry.name, str(entry)):
                image = entry.name.lower().endswith((*SUFFIXES, *NOT_READ))
                self.unused.add(reason + ", though they are images" * image, self.name(str(entry)))

    def _is_hidden(self, name: str, path: str) -> bool:
        if name[0] != "." and not is_system(name):
            return False
        self.unused.add("that are hidden or of the system", self.name(path))
        return True

    def _new_images(self, folder: str, entered: set[str], place: str) -> Iterator[str]:
        """Paths of the images below a folder that were not seen before; links are followed, but never in a circle."""
        real_folder = os.path.realpath(folder)
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise FoveateError(f"{folder} cannot be read: {error.strerror}") from error
        for entry in entries:
            # Resolving every path would cost more than the rest of the scan.
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real_folder, entry.name)
            if entry.name[0] == "." or is_system(entry.name):
                if entry.is_dir():
                    self.leave_out(Path(entry.path), "in hidden folders and folders of the system")
                else:
                    self._is_hidden(entry.name, entry.path)
            elif entry.is_dir():
                if real not in entered:
                    entered.add(real)
                    yield from self._new_images(entry.path, entered, place)
                else:
                    self.unused.add("that are links to what is there already", self.name(entry.path))
            elif not entry.name.lower().endswith(SUFFIXES):
                not_read = entry.name.lower().endswith(NOT_READ)
                reason = NOT_READ_REASON if not_read else "without an image suffix"
                self.unused.add(reason, self.name(entry.path))
            elif real not in self.seen:
                self.seen[real] = place
                yield entry.path
            elif self.seen[real] == place:
                self.unused.add("that are links to what is there already", self.name(entry.path))
            else:
                raise FoveateError(
                    f"{entry.path} ({place}) is the same file as one in {self.seen[real]}: remove one of the links"
                )
