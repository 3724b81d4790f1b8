"""Images in class folders: ``train/cat/1.jpg`` and ``val/cat/2.jpg``, or ``cat/1.jpg`` with a seeded split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from foveate.data.division import divide
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError, near
from foveate.images import SUFFIXES

__all__ = ["TRAIN_NAMES", "VAL_NAMES", "read_folder"]

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test", "testing")


def read_folder(root: Path, seed: int, val_fraction: float) -> ImageData:
    """Read a folder in ImageFolder layout, with ``train/`` and ``val/`` or with class folders only.

    Args:
        root: the folder.
        seed: of the split, where the folder has none.
        val_fraction: part of each class that goes to validation, where the folder has no split.

    Returns:
        The data set. Its classes are the sorted names of training's class folders, also of empty ones.

    Raises:
        FoveateError: there are no class folders, a validation class is unknown to training, or by a link one file
            stands in two classes or in both parts.
    """
    folders = _subfolders(root)
    train_name, val_names = _parts(root, folders)
    kinds = _class_folders(folders[train_name] if train_name else root, root, least=2)
    classes = tuple(kinds)
    scan = _Scan(root, classes)
    train = scan.split("train", kinds)
    if val_names:
        val = scan.split("val", _class_folders(folders[val_names[0]], root, least=1))
        notes = [f"split as the folders {train_name}/ and {val_names[0]}/"]
        notes += [f"{name}/ unused" for name in val_names[1:]]
        present = set(val.labels)
        missing = [name for label, name in enumerate(classes) if label not in present]
        notes += [f"no validation image of: {', '.join(missing)}"] if missing else []
    else:
        train, val, how = divide(train, val_fraction, seed)
        notes = [how]
    return ImageData(root.resolve().name, classes, train, val, note="; ".join(notes + scan.remarks()))


def _subfolders(folder: Path) -> dict[str, Path]:
    """Folders and links to folders, without hidden ones, sorted by name."""
    try:
        found = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise FoveateError(f"{folder} cannot be read: {error.strerror}") from error
    return {entry.name: entry for entry in sorted(found)}


def _parts(root: Path, folders: dict[str, Path]) -> tuple[str | None, list[str]]:
    """Which folder is for training and which are for validation, the best first; None where there is no such split."""
    train = [name for name in folders if name.lower() in TRAIN_NAMES]
    val = sorted(
        (name for name in folders if name.lower() in VAL_NAMES), key=lambda name: VAL_NAMES.index(name.lower())
    )
    if not train and val and len(val) == len(folders):
        raise FoveateError(f"{root} has {', '.join(val)} and no train folder: add it, or name a folder of classes")
    # A class may be called "train": it stands among other classes, or holds images and no folders.
    if train and (val or (len(folders) == 1 and _subfolders(folders[train[0]]))):
        return train[0], val
    return None, []


def _class_folders(folder: Path, root: Path, least: int) -> dict[str, Path]:
    """Class name -> folder. A link to a folder above, or to another class, is not a class."""
    above = {os.path.realpath(path) for path in (root, folder)}
    kinds: dict[str, Path] = {}
    for path in sorted(_subfolders(folder).values(), key=lambda path: (path.is_symlink(), path.name)):
        real = os.path.realpath(path)
        if real not in above:
            above.add(real)
            kinds[path.name] = path
    if len(kinds) < least:
        inner = [path.name for path in kinds.values() if len(_subfolders(path)) > 1]
        hint = f"; did you mean {folder / inner[0]}?" if inner else ""
        count = "no class folders" if not kinds else f"only one class folder ({next(iter(kinds))})"
        raise FoveateError(
            f"{folder} has {count}: put the images into two or more folders, one per class, "
            f"as in {folder.name}/cat/1.jpg and {folder.name}/dog/2.jpg{hint}"
        )
    return dict(sorted(kinds.items()))


class _Scan:
    """Collects the images below class folders, each file once."""

    def __init__(self, root: Path, classes: tuple[str, ...]) -> None:
        self.root = root
        self.classes = classes
        self.seen: dict[str, str] = {}  # resolved path -> "part/class" it was found in
        self.others = 0
        self.repeats = 0

    def split(self, part: str, kinds: dict[str, Path]) -> Split:
        """Images of all the classes of one part, in the order of their paths."""
        rows: list[tuple[str, int]] = []
        # No class is entered through a link that lies in another one.
        entered = {os.path.realpath(folder) for folder in (self.root, *kinds.values())}
        entered |= {os.path.realpath(folder.parent) for folder in kinds.values()}
        for kind, folder in kinds.items():
            paths = list(self._new_images(str(folder), entered, f"{part}, class {kind}"))
            if not paths:
                continue
            if kind not in self.classes:
                raise FoveateError(f"class {kind!r} of {folder} is not in training: {near(kind, self.classes)}")
            rows += [(path, self.classes.index(kind)) for path in paths]
        start = len(str(self.root / "x")) - 1
        names = tuple(path[start:].replace(os.sep, "/") for path, _ in rows)
        return Split(part, tuple(path for path, _ in rows), tuple(label for _, label in rows), names)

    def _new_images(self, folder: str, entered: set[str], place: str) -> Iterator[str]:
        """Paths of the images below a folder that were not seen before; links are followed, but never in a circle."""
        real_folder = os.path.realpath(folder)
        try:
            with os.scandir(folder) as listing:
                entries = sorted((entry for entry in listing if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError as error:
            raise FoveateError(f"{folder} cannot be read: {error.strerror}") from error
        for entry in entries:
            # Resolving every path would cost more than the rest of the scan.
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real_folder, entry.name)  # noqa: PTH118
            if entry.is_dir():
                if real not in entered:
                    entered.add(real)
                    yield from self._new_images(entry.path, entered, place)
                else:
                    self.repeats += 1
            elif not entry.name.lower().endswith(SUFFIXES):
                self.others += 1
            elif real not in self.seen:
                self.seen[real] = place
                yield entry.path
            elif self.seen[real] == place:
                self.repeats += 1
            else:
                raise FoveateError(
                    f"{entry.path} ({place}) is the same file as one in {self.seen[real]}: remove one of the links"
                )

    def remarks(self) -> list[str]:
        """What was left out, in words."""
        left_out = [(self.others, "without an image suffix"), (self.repeats, "that are links to what is there already")]
        return [f"left out {count} file{'s' * (count > 1)} {what}" for count, what in left_out if count]
