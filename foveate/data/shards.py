"""Images in tar files, as WebDataset lays them out: ``KEY.jpg`` beside ``KEY.cls``, the files of a key together.

The format: https://github.com/webdataset/webdataset. The headers are read once; an image is then read from its place in
the file. Nothing is unpacked, so no name in a tar file can reach outside.
"""

from __future__ import annotations

import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from foveate.data.division import divide
from foveate.data.parts import Unused, lines_of_names, part_of, parts_of
from foveate.data.sources import Piece
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError, first_line
from foveate.image_files import is_system
from foveate.images import SUFFIXES

__all__ = ["is_shards", "read_shards"]

_MOST_BYTES = 1000  # of a label
Rows = list[tuple[Piece, str, str]]  # image, label as text, name


def is_shards(path: Path) -> bool:
    """Whether a path is a tar file, or a folder that holds tar files and no folders."""
    if path.is_file():
        return path.suffix.lower() == ".tar"
    folders = (entry for entry in path.iterdir() if entry.is_dir())
    shown = [entry for entry in folders if entry.name[0] != "." and not is_system(entry.name)]
    return not shown and any(path.glob("*.tar"))


def read_shards(path: Path, seed: int, val_fraction: float) -> ImageData:
    """Read ``train-000.tar``, ``train-001.tar``, ... with ``val-000.tar``, ..., or tar files that are not divided.

    A sample is an image file and a ``.cls`` file with the same name up to the first dot: a whole number, or the
    class's name. A ``classes.txt`` beside the tar files may name the classes 0, 1, ... line by line. A number below 0
    stands for no class: these samples are left out. The part may stand anywhere in a file's name, as in
    ``birds-train-000.tar``.

    Args:
        path: a tar file, or the folder.
        seed: of the split, where the file names make none.
        val_fraction: part of each class that goes to validation, where the file names make no split.

    Raises:
        FoveateError: a file is not a plain tar, a sample lacks its label or its image or has two, some file names say
            which part they are and others do not, or a validation label is unknown.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.tar"))
    parts: dict[str, list[Path]] = parts_of({file.stem: file for file in files}, alone=False) if path.is_dir() else {}
    unknown = [file.name for file in files if part_of(file.stem, alone=False) is None]
    _require_known(path, parts, unknown)
    train_files = parts.pop("train", files)
    unused = Unused()
    if path.is_dir():
        known = {*(file.name for file in files), "classes.txt"}
        others = (entry.name for entry in path.iterdir() if entry.is_file() and entry.name not in known)
        unused.add("that are not tar files", sorted(others))
    training = _samples(train_files, unused)
    classes, positions = _classes(
        (path if path.is_dir() else path.parent) / "classes.txt", [row[1] for row in training]
    )
    train, val, note = _split("train", training, positions), None, ""
    for name, val_files in parts.items():
        rows = _samples(val_files, unused) if val is None else []
        if rows:
            val = _split("val", rows, positions)
            note = f"split by file names: {len(train_files)} train, {len(val_files)} {name} files"
        else:
            unused.add("of a part that is not used", (file.name for file in val_files))
    if val is None:
        train, val, note = divide(train, val_fraction, seed)
    elif unknown:
        unused.add("whose names do not say which part they are", unknown)
    title = path.resolve().stem if path.is_file() else path.resolve().name
    note = "; ".join([note, *unused.as_text()])
    return ImageData(title, classes, train, val, note=note, unused=unused.listed())


def _require_known(path: Path, parts: dict[str, list[Path]], unknown: list[str]) -> None:
    """Refuse names of which only some say which part they are."""
    stems = [name.removesuffix(".tar") for name in unknown]
    series = {re.sub(r"[-_.]?\d+$", "", stem) for stem in stems}
    several = len(series) > 1 and not series & set(stems)  # numbered, and of two names
    if unknown and (parts.keys() == {"train"} or (not parts and several)):
        raise FoveateError(
            f"{path}: {', '.join(unknown[:4])}{' ...' * (len(unknown) > 4)}: these names do not say which part of the "
            "data set they are: rename them, as in train-000.tar and val-000.tar, or name one file"
        )
    if parts and "train" not in parts:
        raise FoveateError(
            f"{path} has tar files for {', '.join(parts)} and none for training: add them, or name one file"
        )


def _samples(files: Sequence[Path], unused: Unused) -> Rows:
    """Image, label as text and name of every sample that has a class."""
    found: Rows = []
    for file in files:
        images: dict[str, tuple[Piece, str]] = {}
        labels: dict[str, str] = {}
        try:
            with tarfile.open(file, "r:") as tar:  # without compression: pieces must be readable in place
                for member in tar:
                    _take(tar, member, file, images, labels, unused)
        except (OSError, tarfile.TarError, UnicodeError, ValueError) as error:
            if isinstance(error, FoveateError):
                raise
            raise FoveateError(f"{file} is not a plain tar file that can be read: {first_line(error)}") from error
        lost = sorted(images.keys() ^ labels.keys())
        if lost:
            lacks = "label (.cls)" if lost[0] in images else "image"
            raise FoveateError(f"{file}: the sample {lost[0]!r} has no {lacks} ({len(lost)} such samples)")
        for key, (piece, name) in images.items():
            if re.fullmatch(r"-\d+", labels[key]):
                unused.add("without a class (a label below 0)", f"{file.name}/{name}")
            else:
                found.append((piece, labels[key], f"{file.name}/{name}"))
    return found


def _take(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    file: Path,
    images: dict[str, tuple[Piece, str]],
    labels: dict[str, str],
    unused: Unused,
) -> None:
    """Put a member into the images or labels, or count it as not used."""
    if not member.isreg():
        return
    name = Path(member.name)
    if any(part[0] == "." and part.strip(".") for part in name.parts) or any(map(is_system, name.parts)):
        unused.add("that are hidden or of the system", f"{file.name}/{member.name}")
        return
    base, _, suffix = name.name.partition(".")
    key, suffix = str(name.parent / base), suffix.lower()
    image = f".{suffix}".endswith(SUFFIXES)
    if (suffix == "cls" and key in labels) or (image and key in images):
        raise FoveateError(
            f"{file}: two {'images' if image else 'labels'} have the key {key!r}, the name up to the first dot, the "
            f"second of them {member.name}: give each sample a key of its own"
        )
    if suffix == "cls":
        text = tar.extractfile(member)
        labels[key] = unicodedata.normalize("NFC", text.read(_MOST_BYTES).decode().strip()) if text else ""
    elif image:
        images[key] = (Piece(str(file), member.offset_data, member.size), member.name)
    else:
        unused.add("without an image suffix or .cls", f"{file.name}/{member.name}")


def _classes(file: Path, labels: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and label as written -> position among them."""
    if file.is_file():
        names = tuple(lines_of_names(file))
        if twice := next((name for name, times in Counter(names).items() if times > 1), None):
            raise FoveateError(f"{file} names {twice!r} twice: give each class a name of its own")
        as_numbers, as_names = {str(at): at for at in range(len(names))}, {name: at for at, name in enumerate(names)}
        readings = [reading for reading in (as_numbers, as_names) if all(label in reading for label in labels)]
        if len(readings) == 2 and any(as_numbers[label] != as_names[label] for label in labels):
            raise FoveateError(
                f"{file}: the labels are numbers, and so are the names, in another order: a label may be either; write "
                "the names from 0 on in the order of the numbers, or remove the file"
            )
        return names, readings[0] if readings else as_numbers | as_names
    numbered = all(label.isascii() and label.isdigit() for label in labels)
    names = tuple(sorted(set(labels), key=int) if numbered else sorted(set(labels)))
    return names, {name: at for at, name in enumerate(names)}


def _split(part: str, rows: Rows, positions: dict[str, int]) -> Split:
    for _, label, name in rows:
        if label not in positions:
            raise FoveateError(f"{name}: the label {label!r} is not a class of training")
    pieces, labels, names = zip(*rows, strict=True) if rows else ((), (), ())
    return Split(part, pieces, tuple(positions[label] for label in labels), names)
