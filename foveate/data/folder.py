"""Images in class folders: ``train/cat/1.jpg`` and ``val/cat/2.jpg``, or ``cat/1.jpg`` with a seeded split."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from foveate.data.division import divide
from foveate.data.parts import PartChoice, Unused, may_be_part, parts_of
from foveate.data.scan import Scan
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError, printable
from foveate.image_files import is_system

__all__ = ["read_folder"]

_PICTURES = {"images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "photos", "pictures"}
_TARGETS = {
    *("annotations", "annotation", "labels", "label", "masks", "mask", "gt", "gtfine", "gtcoarse", "ground_truth"),
    *("groundtruth", "segmentation", "segmentations", "segmentationclass", "segmentationobject", "imagesets", "boxes"),
    *("annots", "annot", "targets", "labelmap", "trimaps", "xmls", "bboxes"),
}


def read_folder(
    root: Path, seed: int, val_fraction: float, min_classes: int = 2, choice: PartChoice | None = None
) -> ImageData:
    """Read a folder in ImageFolder layout, with ``train/`` and ``val/`` or with class folders only.

    Args:
        root: the folder.
        seed: of the split, where the folder has none.
        val_fraction: part of each class that goes to validation, where the folder has no split.
        min_classes: fewer class folders are refused.
        choice: which parts to use, where there are more than two.

    Returns:
        The data set. Its classes are the sorted names of training's class folders, also of empty ones. Names that
        differ only in how Unicode composes an accent are one class.

    Raises:
        FoveateError: there are no class folders, the folders look like something else (images beside annotations, parts
            with an unknown name), a validation class is unknown to training, or by a link one file stands in two
            classes or in both parts.
    """
    unused = Unused()
    folders = _subfolders(root, root, unused)
    _refuse_targets(root, folders)
    if choice:
        return _read_chosen(root, folders, choice, unused)
    train_folder, val_folders = _parts(root, folders)
    if train_folder is not None:
        _refuse_targets(train_folder, _subfolders(train_folder, root, Unused()))
    kinds = _class_folders(train_folder or root, root, min_classes, unused if train_folder else Unused())
    classes = tuple(kinds)
    scan = Scan(root, classes, unused)
    train = scan.split("train", kinds)
    notes = []
    if train_folder is not None:
        labelled = [folder for folder in val_folders if _subfolders(folder, root, Unused())]
        val_folder = labelled[0] if labelled else None
        for name, folder in folders.items():
            if folder not in (train_folder, val_folder):
                scan.leave_out(folder, f"in {name}/, which is not used")
        scan.leave_out_files(root, "beside the folders of the parts")
    else:
        val_folder = None
        scan.leave_out_files(root, "beside the class folders")
    if val_folder is not None and train_folder is not None:
        scan.leave_out_files(train_folder, "beside the class folders")
        scan.leave_out_files(val_folder, "beside the class folders")
        val = scan.split("val", _class_folders(val_folder, root, 1, unused))
        notes += [f"split as the folders {train_folder.name}/ and {val_folder.name}/"]
        present = set(val.labels)
        missing = [name for label, name in enumerate(classes) if label not in present]
        notes += [f"no validation image of: {', '.join(missing[:20])}"] if missing else []
    else:
        train, val, how = divide(train, val_fraction, seed)
        notes += [f"no labelled validation part beside {train_folder.name}/"] if train_folder else []
        notes += [how]
    notes += scan.merged
    note = "; ".join(notes + unused.as_text())
    return ImageData(root.resolve().name, classes, train, val, note=note, unused=unused.listed())


def _read_chosen(root: Path, folders: dict[str, Path], choice: PartChoice, unused: Unused) -> ImageData:
    """The parts that were asked for, several of them as one."""
    training, held = choice.pick(parts_of(folders, alone=True), root)
    inside = {folder: _class_folders(folder, root, 1, unused) for folder in (*training, *held)}
    scan = Scan(root, tuple(sorted({name for folder in training for name in inside[folder]})), unused)
    train = _joined([scan.split("train", inside[folder]) for folder in training])
    val = _joined([scan.split("val", inside[folder]) for folder in held])
    for name, folder in folders.items():
        if folder in (*training, *held):
            scan.leave_out_files(folder, "beside the class folders")
        else:
            scan.leave_out(folder, f"in {name}/, which is not used")
    scan.leave_out_files(root, "beside the folders of the parts")
    note = f"split as the folders {' and '.join(f'{f.name}/' for f in training)}, and {held[0].name}/"
    note = "; ".join([note, *scan.merged, *unused.as_text()])
    return ImageData(root.resolve().name, scan.classes, train, val, note=note, unused=unused.listed())


def _joined(splits: list[Split]) -> Split:
    """Several splits as one, in their order."""
    sources = tuple(source for split in splits for source in split.sources)
    labels = tuple(label for split in splits for label in split.labels)
    return Split(splits[0].name, sources, labels, tuple(name for split in splits for name in split.names))


def _subfolders(folder: Path, root: Path, unused: Unused) -> dict[str, Path]:
    """Folders and links to folders, without hidden ones and those of systems, sorted by name."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise FoveateError(f"{folder} cannot be read: {error.strerror}") from error
    found = {}
    for entry in entries:
        if entry.name.startswith(".") or is_system(entry.name):
            Scan(root, (), unused).leave_out(entry, "in hidden folders and folders of the system")
        else:
            found[entry.name] = entry
    return found


def _refuse_targets(root: Path, folders: dict[str, Path]) -> None:
    """Refuse images beside masks or boxes: they are not classes."""
    pictures = [name for name in folders if name.lower() in _PICTURES]
    targets = [name for name in folders if name.lower() in _TARGETS]
    if pictures and targets:
        raise FoveateError(
            f"{root} holds {pictures[0]}/ beside {targets[0]}/, as data for segmentation or detection do "
            "(or a data set whose split files are missing): classification needs a folder of images for each class; "
            "open_segmentation opens images beside label maps"
        )


def _parts(root: Path, folders: dict[str, Path]) -> tuple[Path | None, list[Path]]:
    """The folder for training and those for validation, the best first; None where there is no such split."""
    parts = parts_of(folders, alone=True)
    train, val = parts.pop("train", []), [folder for found in parts.values() for folder in found]
    if not train and val and len(val) == len(folders):
        names = ", ".join(folder.name for folder in val)
        raise FoveateError(f"{root} has {names} and no train folder: add it, or name a folder of classes")
    inside = {name: set(_subfolders(folder, root, Unused())) for name, folder in folders.items()}
    # A class may be called "train": it stands among other classes, or holds images and no folders.
    if train and not val and not (len(folders) == 1 and inside[train[0].name]):
        val = []
    if train and (val or (len(folders) == 1 and inside[train[0].name])):
        if len(train) > 1:
            names = " and ".join(folder.name for folder in train)
            raise FoveateError(f"{root} has {names}, all for training by their names: keep one, or name its folder")
        if not any(inside[folder.name] for folder in (*train, *val)) and len(train) + len(val) < len(folders):
            return None, []  # classes of these names among others: they hold images
        return train[0], val
    _refuse_unknown_parts(root, inside)
    return None, []


def _refuse_unknown_parts(root: Path, inside: dict[str, set[str]]) -> None:
    """Refuse folders that hold the same folders and are called as parts are, in a way that is not understood."""
    names = list(inside)
    for at, name in enumerate(names):
        for other in names[at + 1 :]:
            shared = sorted(inside[name] & inside[other])
            alike = len(shared) > 1 and len(shared) * 2 > max(len(inside[name]), len(inside[other]))
            if alike and (may_be_part(name) or may_be_part(other)):
                raise FoveateError(
                    f"{root}: {name}/ and {other}/ hold the same folders ({', '.join(shared[:4])}), as the parts of a "
                    "data set do, and their names do not say which: rename them train and val, or name one of them"
                )


def _class_folders(folder: Path, root: Path, least: int, unused: Unused) -> dict[str, list[Path]]:
    """Class name -> its folders. A link to a folder above, or to another class, is not a class."""
    above = {os.path.realpath(path) for path in (root, folder)}
    kinds: dict[str, list[Path]] = {}
    inside = _subfolders(folder, root, unused)
    for path in sorted(inside.values(), key=lambda path: (path.is_symlink(), path.name)):
        real = os.path.realpath(path)
        if real not in above:
            above.add(real)
            kinds.setdefault(unicodedata.normalize("NFC", printable(path.name)), []).append(path)
    if len(kinds) < least:
        within = [name for name, found in kinds.items() if len(_subfolders(found[0], root, Unused())) > 1]
        hint = f"; did you mean {folder / within[0]}?" if within else ""
        count = "no class folders" if not kinds else f"only one class folder ({next(iter(kinds))})"
        raise FoveateError(
            f"{folder} has {count}: put the images into two or more folders, one per class, "
            f"as in {folder.name}/cat/1.jpg and {folder.name}/dog/2.jpg{hint}"
        )
    return dict(sorted(kinds.items()))
