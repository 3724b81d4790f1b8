"""Images in tar files, as WebDataset lays them out: ``KEY.jpg`` beside ``KEY.cls``, the files of a key together.

The format: https://github.com/webdataset/webdataset. The headers are read once; an image is then read from its place in
the file. Nothing is unpacked, so no name in a tar file can reach outside.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from foveate.data.division import divide
from foveate.data.folder import TRAIN_NAMES, VAL_NAMES
from foveate.data.sources import Piece
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError, first_line
from foveate.images import SUFFIXES

__all__ = ["is_shards", "read_shards"]

_MOST_DIGITS = 100  # bytes of a label


def is_shards(path: Path) -> bool:
    """Whether a path is a tar file, or a folder that holds tar files and no folders."""
    if path.is_file():
        return path.suffix.lower() == ".tar"
    return any(path.glob("*.tar")) and not any(entry.is_dir() for entry in path.iterdir())


def read_shards(path: Path, seed: int, val_fraction: float) -> ImageData:
    """Read ``train-000.tar``, ``train-001.tar``, ... with ``val-000.tar``, ..., or tar files that are not divided.

    A sample is an image file and a ``.cls`` file with the same name up to the first dot: a whole number, or the
    class's name. A ``classes.txt`` beside the tar files may name the classes 0, 1, ... line by line.

    Args:
        path: a tar file, or the folder.
        seed: of the split, where the file names make none.
        val_fraction: part of each class that goes to validation, where the file names make no split.

    Raises:
        FoveateError: a file is no plain tar, a sample lacks its label or its image, or a validation label is unknown.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.tar"))
    train = [file for file in files if _begins(file, TRAIN_NAMES)]
    val = [file for file in files if _begins(file, VAL_NAMES)]
    undivided = not (train and val)
    learn = _samples(files if undivided else train)
    judge = [] if undivided else _samples(val)
    classes, positions = _classes((path if path.is_dir() else path.parent) / "classes.txt", [row[1] for row in learn])
    whole = _split("train", learn, positions)
    if undivided:
        whole, held, note = divide(whole, val_fraction, seed)
    else:
        held, note = _split("val", judge, positions), f"split by file names: {len(train)} train, {len(val)} val files"
        left = len(files) - len(train) - len(val)
        note += f"; {left} tar files unused" if left else ""
    return ImageData(path.resolve().stem if path.is_file() else path.resolve().name, classes, whole, held, note=note)


def _begins(file: Path, names: Sequence[str]) -> bool:
    return file.stem.lower().replace("_", "-").split("-")[0] in names


def _samples(files: Sequence[Path]) -> list[tuple[Piece, str, str]]:
    """Image, label as text and name of every sample."""
    found = []
    for file in files:
        images: dict[str, tuple[Piece, str]] = {}
        labels: dict[str, str] = {}
        try:
            with tarfile.open(file, "r:") as tar:  # without compression: pieces must be readable in place
                for member in tar:
                    name = Path(member.name)
                    key, _, suffix = name.name.partition(".")
                    key = str(name.parent / key)
                    if not member.isreg() or not key:
                        continue
                    if suffix.lower() == "cls":
                        text = tar.extractfile(member)
                        labels[key] = text.read(_MOST_DIGITS).decode().strip() if text else ""
                    elif f".{suffix.lower()}" in SUFFIXES:
                        images[key] = (Piece(str(file), member.offset_data, member.size), member.name)
        except (OSError, tarfile.TarError, UnicodeError, ValueError) as error:
            raise FoveateError(f"{file} is no plain tar file that can be read: {first_line(error)}") from error
        lost = sorted(images.keys() ^ labels.keys())
        if lost:
            lacks = "label (.cls)" if lost[0] in images else "image"
            raise FoveateError(f"{file}: the sample {lost[0]!r} has no {lacks} ({len(lost)} such samples)")
        found += [(piece, labels[key], f"{file.name}/{name}") for key, (piece, name) in images.items()]
    return found


def _classes(file: Path, labels: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and label as written -> position among them."""
    if file.is_file():
        names = tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
        return names, {str(at): at for at in range(len(names))} | {name: at for at, name in enumerate(names)}
    numbered = all(label.isascii() and label.isdigit() for label in labels)
    names = tuple(sorted(set(labels), key=int) if numbered else sorted(set(labels)))
    return names, {name: at for at, name in enumerate(names)}


def _split(part: str, rows: Sequence[tuple[Piece, str, str]], positions: dict[str, int]) -> Split:
    for _, label, name in rows:
        if label not in positions:
            raise FoveateError(f"{name}: the label {label!r} is not a class of training")
    pieces, labels, names = zip(*rows, strict=True) if rows else ((), (), ())
    return Split(part, pieces, tuple(positions[label] for label in labels), names)
