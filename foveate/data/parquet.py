"""Images in Parquet files: one row per image, with its encoded bytes and its label."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from foveate.data.division import divide
from foveate.data.parts import PartChoice, Unused, check_class_order, part_of, parts_of, usable
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError, near
from foveate.image_files import is_system

__all__ = ["is_parquet", "read_parquet"]

_OTHER_FILES = "of a part that is not used"


def is_parquet(path: Path) -> bool:
    """Whether a path is a Parquet file, or a folder that holds some and no folders of images."""
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    stems = {file.stem for file in path.glob("*.parquet")}
    folders = [
        entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "." and not is_system(entry.name)
    ]
    if not stems and [folder.name for folder in folders] == ["data"]:
        return any((path / "data").glob("*.parquet"))  # as the Hugging Face hub keeps it
    return any(part_of(stem, alone=False) == "train" for stem in stems) or (bool(stems) and not folders)


def read_parquet(path: Path, seed: int, val_fraction: float, choice: PartChoice | None = None) -> ImageData:
    """Read ``train.parquet`` with ``test.parquet`` (or ``val``, ``dev``, ...), or a single file.

    A part may be several files, such as ``train-00000-of-00002.parquet``, and they may lie in the folder ``data``.
    Columns: ``image``, encoded bytes (or a struct with ``bytes``, as Hugging Face writes it); ``label``, whole
    numbers or text; ``split``, text, used only where the file names make no split. Where Hugging Face's schema names
    one image column and one ClassLabel column, these are taken, with the class names. A ``dataset.json`` beside the
    files may give ``class_names`` (a label is a position in them), ``name`` and ``licence``. A label below 0 stands for
    no class: these rows are left out. The encoded images are held in memory.

    Args:
        path: the file, or the folder.
        seed: of the split, where neither files nor a column make one.
        val_fraction: part of each class that goes to validation, where neither files nor a column make a split.
        choice: which parts to use, where there are more than two.

    Returns:
        The data set. Without class names, its classes are training's distinct labels, in order, as text.

    Raises:
        FoveateError: a file or column is missing or of the wrong type, a value is missing, a label has no class name,
            or a validation label is unknown to training.
    """
    folder = path if path.is_dir() else path.parent
    within = folder if any(folder.glob("*.parquet")) else folder / "data"
    files = {file.stem: file for file in ([path] if path.is_file() else sorted(within.glob("*.parquet")))}
    unused = Unused()
    train, val, note = _by_files(path, files, unused, choice)
    if val is None and len(set(train.parts)) > 1:
        train, val, note = train.by_column(path, unused, choice)
    if choice and val is None:
        raise FoveateError(f"{path} has no parts to choose from (parts={str(choice)!r}): leave parts out for a split")
    train = train.with_classes(unused)

    described = _description(folder / "dataset.json")
    classes, positions = _classes(train, described.get("class_names") or train.classes)
    training = train.split("train", positions)
    if val is None:
        training, validation, how = divide(training, val_fraction, seed)
        note = "; ".join(filter(None, (note, how)))
    else:
        check_class_order(train.classes, val.classes, f"{path}: the schemas of the files")
        validation = val.split("val", positions)
    note = "; ".join([note, *unused.as_text("row", {_OTHER_FILES: "file"})])
    name = described.get("name") or path.resolve().stem
    licence = described.get("licence") or described.get("license")
    return ImageData(
        str(name), classes, training, validation, str(licence) if licence else None, note, unused=unused.listed()
    )


def _by_files(
    path: Path, files: dict[str, Path], unused: Unused, choice: PartChoice | None
) -> tuple[_Rows, _Rows | None, str]:
    """Training rows, validation rows if the file names make a split, and a text that says how."""
    parts = parts_of(files, alone=False)
    if choice and len(parts) > 1:
        training, held = choice.pick(parts, path)
        unused.add(_OTHER_FILES, (file.name for file in files.values() if file not in (*training, *held)))
        note = f"split as the files {' and '.join(file.name for file in training)}, and {_named(held)}"
        return _Rows.read(training), _Rows.read(held).with_classes(unused), note
    training = parts.pop("train", [])
    unknown = [file for name, file in files.items() if part_of(name, alone=False) is None]
    if not training and not parts and len({_series(name) for name in files}) == 1:
        return _Rows.read(unknown), None, ""
    if not training or (unknown and not parts):
        if path.is_file():
            return _Rows.read([path]), None, ""
        names = ", ".join(file.name for file in files.values())
        raise FoveateError(f"{path} holds {names}: rename them train.parquet and test.parquet, or name one file")
    for held in list(parts.values()):
        val = _Rows.read(held).with_classes(unused)
        if val.labels:
            note = f"split as the files {_named(training)} and {_named(held)}"
            left = [file for other in parts.values() if other is not held for file in other] + unknown
            unused.add(_OTHER_FILES, (file.name for file in left))
            return _Rows.read(training), val, note
    return _Rows.read(training), None, "no labelled validation file" if parts else ""


def _series(name: str) -> str:
    """A file's name without its number among several, as in ``birds-00001-of-00004``."""
    return re.sub(r"[-_.]?\d+([-_.]of[-_.]\d+)?$", "", name)


def _named(files: Sequence[Path]) -> str:
    return files[0].name + (f" to {files[-1].name}" if len(files) > 1 else "")


_Label: TypeAlias = Any  # int or str, as written; a column has one of them


@dataclass(frozen=True)
class _Rows:
    images: list[bytes]
    labels: list[_Label]
    parts: list[str]  # the split column; empty where there is none
    names: list[str]
    classes: list[str] | None = None  # of Hugging Face's schema

    @classmethod
    def read(cls, files: Sequence[Path]) -> _Rows:
        """Rows of several files, in their order."""
        read = [cls._read(file) for file in files]
        if any(each.classes != read[0].classes for each in read):
            raise FoveateError(f"{_named(files)}: their schemas name other classes: use one order of classes")
        return cls(
            [image for each in read for image in each.images],
            [label for each in read for label in each.labels],
            [part for each in read for part in each.parts],
            [name for each in read for name in each.names],
            read[0].classes,
        )

    def with_classes(self, unused: Unused) -> _Rows:
        """The rows whose label stands for a class."""
        keep = [row for row, label in enumerate(self.labels) if usable(label)]
        if len(keep) == len(self.labels):
            return self
        pairs = zip(self.names, self.labels, strict=True)
        unused.add("without a class (a label below 0)", (name for name, label in pairs if not usable(label)))
        return self._rows(keep)

    @classmethod
    def _read(cls, file: Path) -> _Rows:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(file) as parquet:
                columns, features = parquet.schema_arrow.names, _features(parquet.schema_arrow.metadata)
                image = _column("Image", "image", columns, features)
                label = _column("ClassLabel", "label", columns, features)
                for column in (image, label):
                    if column not in columns:
                        raise FoveateError(f"{file} has no column {column!r}: {near(column, columns)}")
                table = parquet.read(columns=[name for name in (image, label, "split") if name in columns])
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise FoveateError(f"{file} is not a Parquet file that can be read: {reason}") from error
        images, labels = (table.column(column).to_pylist() for column in (image, label))
        if images and isinstance(images[0], dict):
            images = [image and image.get("bytes") for image in images]
        parts = [str(part).lower() for part in table.column("split").to_pylist()] if "split" in columns else []
        for row, (picture, value) in enumerate(zip(images, labels, strict=True)):
            if not isinstance(picture, bytes):
                raise FoveateError(f"{file} row {row}: the image must be encoded bytes, not {_kind(picture)}")
            if not isinstance(value, int | str):
                raise FoveateError(f"{file} row {row}: the label must be a whole number or text, not {_kind(value)}")
        labels = [unicodedata.normalize("NFC", value) if isinstance(value, str) else value for value in labels]
        names = features.get(label, {}).get("names")
        names = names if isinstance(names, list) and features[label].get("_type") == "ClassLabel" else None
        return cls(images, labels, parts, [f"{file.name} row {row}" for row in range(len(images))], names)

    def by_column(self, file: Path, unused: Unused, choice: PartChoice | None) -> tuple[_Rows, _Rows, str]:
        """Training and validation rows by the split column, and a text that says so."""
        present = sorted(set(self.parts))
        parts = parts_of({part: part for part in present}, alone=True)
        if choice:
            train, val = choice.pick(parts, file)
            for left in (part for part in present if part not in (*train, *val)):
                unused.add(f"of the part {left}, which is not used", self._where(left).names)
            note = f"split by the column 'split': {' and '.join(train)}, and {' and '.join(val)}"
            return self._where(*train), self._where(*val).with_classes(unused), note
        train, val = parts.pop("train", []), [part for found in parts.values() for part in found]
        if not train or not val:
            raise FoveateError(f"{file}: column 'split' says {', '.join(present)}: it needs train and val (or test)")
        for left in (part for part in present if part not in (train[0], val[0])):
            unused.add(f"of the part {left}, which is not used", self._where(left).names)
        held = self._where(val[0]).with_classes(unused)
        return self._where(train[0]), held, f"split by the column 'split': {train[0]} and {val[0]}"

    def _where(self, *parts: str) -> _Rows:
        return self._rows([row for part in parts for row, value in enumerate(self.parts) if value == part])

    def _rows(self, keep: Sequence[int]) -> _Rows:
        return _Rows(
            [self.images[row] for row in keep],
            [self.labels[row] for row in keep],
            [self.parts[row] for row in keep] if self.parts else [],
            [self.names[row] for row in keep],
            self.classes,
        )

    def split(self, part: str, positions: dict[_Label, int]) -> Split:
        """The same rows with labels as positions of classes."""
        for label, name in zip(self.labels, self.names, strict=True):
            if label not in positions:
                raise FoveateError(f"{name}: label {label!r} is not a class: {near(str(label), map(str, positions))}")
        return Split(part, tuple(self.images), tuple(positions[label] for label in self.labels), tuple(self.names))


def _classes(train: _Rows, names: object) -> tuple[tuple[str, ...], dict[_Label, int]]:
    """Class names, and label as written -> position among them."""
    labels = set(train.labels)
    if len({type(label) for label in labels}) > 1:
        raise FoveateError("column 'label' mixes numbers and text: use one of them")
    if names is None:
        return tuple(str(label) for label in sorted(labels)), {label: at for at, label in enumerate(sorted(labels))}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise FoveateError("dataset.json: class_names must be a list of distinct names")
    textual = any(isinstance(label, str) for label in labels)
    return tuple(names), {(name if textual else at): at for at, name in enumerate(names)}


def _description(file: Path) -> dict[str, object]:
    """What dataset.json says; nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        described = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FoveateError(f"{file} cannot be read: {error}") from error
    if not isinstance(described, dict):
        raise FoveateError(f"{file} must hold a JSON object")
    return described


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, dict[str, object]]:
    """The columns as Hugging Face's ``datasets`` describes them in a file's schema; nothing where it does not."""
    try:
        described = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {str(name): feature for name, feature in described.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _column(kind: str, usual: str, columns: Sequence[str], features: Mapping[str, Mapping[str, object]]) -> str:
    """The usual column, or the only one of this kind that the schema describes."""
    fitting = [name for name, feature in features.items() if feature.get("_type") == kind and name in columns]
    return fitting[0] if usual not in columns and len(fitting) == 1 else usual


def _kind(value: object) -> str:
    return "a missing value" if value is None else type(value).__name__
