"""The official layouts of six fine-grained data sets, recognised by the files that their authors put beside the images.

Caltech-UCSD Birds-200-2011 (Wah et al., 2011), Stanford Dogs (Khosla et al., 2011), Food-101 (Bossard et al., 2014),
Oxford Flowers-102 (Nilsback and Zisserman, 2008), Oxford-IIIT Pets (Parkhi et al., 2012), FGVC-Aircraft (Maji et al.,
2013).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from foveate.data.official.lists import lines_of, mat_values, pairs_of
from foveate.data.parts import PartChoice, Unused
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError
from foveate.image_files import is_system
from foveate.images import SUFFIXES

__all__ = ["find_official", "read_official"]

Rows = list[tuple[str, str]]  # path of an image relative to the layout's folder, and its class


@dataclass(frozen=True)
class _Parts:
    train: Rows
    val: Rows
    lists: str  # which these are, for the note
    classes: tuple[str, ...] | None = None
    left: Rows = ()  # type: ignore[assignment] # rows of a part that is not used


@dataclass(frozen=True)
class _Layout:
    name: str
    needs: tuple[str, ...]  # files and folders by which it is recognised
    read: Callable[[Path], _Parts]


def find_official(root: Path) -> tuple[Path, str] | None:
    """The folder below ``root`` that is in an official layout, and which one; None where there is none.

    It is ``root`` itself, its folder ``data``, or its only folder.
    """
    for folder in (root, root / "data", *_only_folder(root)):
        for layout in _LAYOUTS:
            if all((folder / name).exists() for name in layout.needs):
                return folder, layout.name
    return None


def _only_folder(root: Path) -> list[Path]:
    folders = [entry for entry in root.iterdir() if entry.is_dir()]
    shown = [entry for entry in folders if entry.name[0] != "." and not is_system(entry.name)]
    return [shown[0], shown[0] / "data"] if len(shown) == 1 else []


def read_official(folder: Path, name: str, choice: PartChoice | None = None) -> ImageData:
    """Read a data set in its official layout with its official split.

    Args:
        folder: and
        name: from :func:`find_official`.
        choice: which parts to use, of Flowers-102 and FGVC-Aircraft, which have three.

    Raises:
        FoveateError: a list cannot be read, names an image that is not there, or contradicts another.
    """
    layout = next(each for each in _LAYOUTS if each.name == name)
    parts = layout.read(folder)
    if choice:
        parts = _chosen(parts, choice, name)
    classes = parts.classes or tuple(dict.fromkeys(sorted(kind for _, kind in parts.train)))
    known = {kind: at for at, kind in enumerate(classes)}
    train, val = (_split(folder, part, rows, known) for part, rows in (("train", parts.train), ("val", parts.val)))
    unused = Unused()
    unused.add("of a part that is not used", (path for path, _ in parts.left))
    listed = {path for rows in (parts.train, parts.val, parts.left) for path, _ in rows}
    there = sorted((folder / layout.needs[0]).rglob("*"))
    found = (str(path.relative_to(folder).as_posix()) for path in there if path.suffix.lower() in SUFFIXES)
    unused.add("that no list names", (path for path in found if path not in listed))
    note = "; ".join([f"{name} in its official layout, split as {parts.lists}", *unused.as_text("image")])
    return ImageData(name, classes, train, val, note=note, unused=unused.listed())


def _chosen(parts: _Parts, choice: PartChoice, name: str) -> _Parts:
    """The parts that were asked for; the authors call the part that is left, if there is one, their test images."""
    found = {"train": parts.train, "val": parts.val, "test": parts.left}
    if not parts.left:
        found = {"train": parts.train, "test": parts.val}
    train, val = choice.pick(found, name)
    left = [row for part, rows in found.items() if part not in (*choice.train, choice.val) for row in rows]
    return _Parts(train, val, f"{parts.lists}, of these {choice}", parts.classes, left)


def _split(folder: Path, part: str, rows: Rows, known: dict[str, int]) -> Split:
    for path, kind in rows:
        if kind not in known:
            raise FoveateError(f"{folder}: the class {kind!r} of {path} is not in the list of classes")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise FoveateError(f"{folder}: a list names {path}, which lies outside the data set")
    sources = tuple(str(folder / path) for path, _ in rows)
    return Split(part, sources, tuple(known[kind] for _, kind in rows), tuple(path for path, _ in rows))


def _birds(folder: Path) -> _Parts:
    classes, images = pairs_of(folder / "classes.txt"), pairs_of(folder / "images.txt")
    labels, training = pairs_of(folder / "image_class_labels.txt"), pairs_of(folder / "train_test_split.txt")
    if not images.keys() == labels.keys() == training.keys():
        raise FoveateError(f"{folder}: images.txt, image_class_labels.txt and train_test_split.txt list other images")
    if not set(labels.values()) <= classes.keys():
        raise FoveateError(f"{folder}: image_class_labels.txt names a class that classes.txt lacks")
    rows = {key: (f"images/{path}", classes[labels[key]]) for key, path in images.items()}
    train = [row for key, row in rows.items() if training[key] == "1"]
    val = [row for key, row in rows.items() if training[key] == "0"]
    return _Parts(train, val, "train_test_split.txt", tuple(classes.values()))


def _dogs(folder: Path) -> _Parts:
    lists = folder / "lists" if (folder / "lists" / "train_list.mat").exists() else folder
    train, val = (
        [(f"Images/{path}", path.split("/")[0]) for path in mat_values(lists / f"{part}_list.mat", "file_list")]
        for part in ("train", "test")
    )
    return _Parts(train, val, "train_list.mat and test_list.mat")


def _food(folder: Path) -> _Parts:
    train, val = (
        [(f"images/{line}.jpg", line.split("/")[0]) for line in lines_of(folder / "meta" / f"{part}.txt")]
        for part in ("train", "test")
    )
    return _Parts(train, val, "meta/train.txt and meta/test.txt")


def _flowers(folder: Path) -> _Parts:
    labels = mat_values(folder / "imagelabels.mat", "labels")
    train, val, left = (
        [(f"jpg/image_{number:05d}.jpg", str(labels[number - 1])) for number in mat_values(folder / "setid.mat", key)]
        for key in ("trnid", "valid", "tstid")
    )
    classes = tuple(map(str, range(1, max(labels) + 1)))
    return _Parts(train, val, "setid.mat: trnid and valid", classes, left)


def _pets(folder: Path) -> _Parts:
    def rows(part: str) -> Rows:
        names = [line.split()[0] for line in lines_of(folder / "annotations" / f"{part}.txt")]
        return [(f"images/{name}.jpg", name.rpartition("_")[0]) for name in names]

    return _Parts(rows("trainval"), rows("test"), "annotations/trainval.txt and annotations/test.txt")


def _aircraft(folder: Path) -> _Parts:
    train, val, left = (
        [(f"images/{key}.jpg", value) for key, value in pairs_of(folder / f"images_variant_{part}.txt").items()]
        for part in ("train", "val", "test")
    )
    classes = tuple(lines_of(folder / "variants.txt"))
    return _Parts(train, val, "images_variant_train.txt and images_variant_val.txt", classes, left)


_LAYOUTS = (
    _Layout("CUB-200-2011", ("images", "images.txt", "classes.txt", "train_test_split.txt"), _birds),
    _Layout("Stanford Dogs", ("Images", "train_list.mat"), _dogs),
    _Layout("Stanford Dogs", ("Images", "lists/train_list.mat"), _dogs),
    _Layout("Food-101", ("images", "meta/train.txt", "meta/test.txt"), _food),
    _Layout("Flowers-102", ("jpg", "setid.mat", "imagelabels.mat"), _flowers),
    _Layout("Oxford-IIIT Pets", ("images", "annotations/trainval.txt", "annotations/test.txt"), _pets),
    _Layout("FGVC-Aircraft", ("images", "variants.txt", "images_variant_train.txt"), _aircraft),
)
