"""Images in Parquet files: one row per image, with its encoded bytes and its label."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.data.division import divide
from foveate.data.folder import TRAIN_NAMES, VAL_NAMES
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError, near

__all__ = ["is_parquet", "read_parquet"]


def is_parquet(path: Path) -> bool:
    """Whether a path is a Parquet file, or a folder that holds some and no folders of images."""
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    stems = {file.stem.lower() for file in path.glob("*.parquet")}
    return _first(TRAIN_NAMES, stems) is not None or (
        bool(stems) and not any(entry.is_dir() for entry in path.iterdir())
    )


def read_parquet(path: Path, seed: int, val_fraction: float) -> ImageData:
    """Read ``train.parquet`` with ``test.parquet`` (or ``val``, ``valid``, ``validation``), or a single file.

    Columns: ``image``, encoded bytes (or a struct with ``bytes``, as Hugging Face writes it); ``label``, whole
    numbers or text; ``split``, text, used only to divide a single file. A ``dataset.json`` beside the files may give
    ``class_names`` (a label is a position in them), ``name`` and ``licence``. The encoded images are held in memory.

    Args:
        path: the file, or the folder.
        seed: of the split, where neither files nor a column make one.
        val_fraction: part of each class that goes to validation, where neither files nor a column make a split.

    Returns:
        The data set. Without class names, its classes are training's distinct labels, in order, as text.

    Raises:
        FoveateError: a file or column is missing or of the wrong type, a value is missing, a label has no class name,
            or a validation label is unknown to training.
    """
    folder = path if path.is_dir() else path.parent
    files = {file.stem.lower(): file for file in ([path] if path.is_file() else sorted(path.glob("*.parquet")))}
    train_name, val_name = _first(TRAIN_NAMES, files), _first(VAL_NAMES, files)
    val = None
    if train_name and val_name:
        train, val = _Rows.read(files[train_name]), _Rows.read(files[val_name])
        note = f"split as the files {files[train_name].name} and {files[val_name].name}"
    elif len(files) == 1:
        (file,) = files.values()
        train = _Rows.read(file)
        if len(set(train.parts)) > 1:
            train, val, note = train.by_column(file)
    else:
        names = ", ".join(file.name for file in files.values())
        raise FoveateError(f"{path} holds {names}: rename two of them train.parquet and test.parquet, or name one file")

    described = _description(folder / "dataset.json")
    classes, positions = _classes(train, described.get("class_names"))
    learn = train.split("train", positions)
    if val is None:
        learn, judge, note = divide(learn, val_fraction, seed)
    else:
        judge = val.split("val", positions)
    name = described.get("name") or path.resolve().stem
    licence = described.get("licence") or described.get("license")
    return ImageData(str(name), classes, learn, judge, str(licence) if licence else None, note)


@dataclass(frozen=True)
class _Rows:
    images: list[bytes]
    labels: list[Any]  # int or str, as written
    parts: list[str]  # the split column; empty where there is none
    names: list[str]

    @classmethod
    def read(cls, file: Path) -> _Rows:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(file) as parquet:
                columns = parquet.schema_arrow.names
                for column in ("image", "label"):
                    if column not in columns:
                        raise FoveateError(f"{file} has no column {column!r}: {near(column, columns)}")
                table = parquet.read(columns=[name for name in ("image", "label", "split") if name in columns])
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise FoveateError(f"{file} is not a Parquet file that can be read: {reason}") from error
        images, labels = (table.column(column).to_pylist() for column in ("image", "label"))
        if images and isinstance(images[0], dict):
            images = [image and image.get("bytes") for image in images]
        parts = [str(part).lower() for part in table.column("split").to_pylist()] if "split" in columns else []
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            if not isinstance(image, bytes):
                raise FoveateError(f"{file} row {row}: the image must be encoded bytes, not {_kind(image)}")
            if not isinstance(label, int | str):
                raise FoveateError(f"{file} row {row}: the label must be a whole number or text, not {_kind(label)}")
        return cls(images, labels, parts, [f"{file.name} row {row}" for row in range(len(images))])

    def by_column(self, file: Path) -> tuple[_Rows, _Rows, str]:
        """Training and validation rows by the split column, and that in words."""
        present = sorted(set(self.parts))
        train, val = _first(TRAIN_NAMES, present), _first(VAL_NAMES, present)
        if train is None or val is None:
            raise FoveateError(f"{file}: column 'split' says {', '.join(present)}: it needs train and val (or test)")
        unused = [part for part in present if part not in (train, val)]
        note = f"split by the column 'split': {train} and {val}" + (f"; {', '.join(unused)} unused" if unused else "")
        return self._where(train), self._where(val), note

    def _where(self, part: str) -> _Rows:
        keep = [row for row, value in enumerate(self.parts) if value == part]
        images, labels = [self.images[row] for row in keep], [self.labels[row] for row in keep]
        return _Rows(images, labels, [], [self.names[row] for row in keep])

    def split(self, part: str, positions: dict[Any, int]) -> Split:
        """The same rows with labels as positions of classes."""
        for label, name in zip(self.labels, self.names, strict=True):
            if label not in positions:
                raise FoveateError(f"{name}: label {label!r} is not a class: {near(str(label), map(str, positions))}")
        return Split(part, tuple(self.images), tuple(positions[label] for label in self.labels), tuple(self.names))


def _classes(train: _Rows, names: Any) -> tuple[tuple[str, ...], dict[Any, int]]:
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


def _description(file: Path) -> dict[str, Any]:
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


def _first(wanted: Iterable[str], exist: Iterable[str]) -> str | None:
    there = set(exist)
    return next((name for name in wanted if name in there), None)


def _kind(value: Any) -> str:
    return "a missing value" if value is None else type(value).__name__
