"""Images and label maps in the rows of a table: Parquet files, and data sets of Hugging Face by name.

A table for segmentation has two columns of encoded images, one of which is called as label maps are. Nothing in a table
says what the numbers stand for: ``dataset.json`` (``class_names``), ``classes.txt`` or ``id2label.json`` beside it may.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.data.libraries import EncodedImages, load_hugging_face
from foveate.data.parquet import is_parquet
from foveate.data.parts import part_of, parts_of
from foveate.data.segmentation.label_map import Source
from foveate.data.segmentation.layouts import Found, Pair, described
from foveate.data.sources import Row
from foveate.errors import FoveateError, first_line, near

__all__ = ["HUB", "find_rows"]

HUB = "hf:"
_PICTURES = ("image", "pixel_values", "img", "picture", "photo")
_TARGETS = (
    *("annotation", "label", "mask", "segmentation", "label_map", "labels", "masks", "annotations", "gt", "seg"),
    *("segmentation_mask", "semantic_segmentation", "semantic_mask", "segmentation_map", "semantic"),
)


def find_rows(source: str | Path) -> Callable[[str | None], Found] | None:
    """How to read a table of images and label maps, or None where it is none.

    Args:
        source: ``hf:NAME``, a Parquet file, or a folder of them.

    Returns:
        Takes the name of the part to measure on, or None for the usual one.
    """
    if isinstance(source, str) and source.startswith(HUB):
        try:
            parts = load_hugging_face(source.removeprefix(HUB))
        except FoveateError:  # open_data, which is asked next, says why
            return None
        columns = _chosen_columns(_image_columns(next(iter(parts.values()))))
        return None if columns is None else lambda part: _of_hub(source, parts, columns, part)
    path = Path(source)
    if not path.exists() or not is_parquet(path):
        return None
    files = _files(path)
    found = _chosen_columns(_encoded_columns(files[0])) if files else None
    return None if found is None else lambda part: _of_parquet(path, files, found, part)


def _chosen_columns(columns: Iterable[str]) -> tuple[str, str] | None:
    """The column of images and that of label maps, of those that hold encoded images."""
    by_name = {name.lower(): name for name in columns}
    target = next((by_name[name] for name in _TARGETS if name in by_name), None)
    others = [name for name in by_name.values() if name != target]
    image = next((by_name[name] for name in _PICTURES if name in by_name), others[0] if len(others) == 1 else None)
    return None if image is None or target is None else (image, target)


def _held(parts: Mapping[str, Any], name: str, wanted: str | None) -> tuple[str, str | None]:
    """The parts to learn from and to be measured on; None: to be drawn."""
    named = parts_of({part: part for part in parts}, alone=True)
    train = named.pop("train", list(parts))[0]
    others = [part for same in named.values() for part in same if part != train]
    if wanted is not None and wanted not in others:
        raise FoveateError(f"{name} has no part {wanted!r}; {near(wanted, others)}")
    return train, wanted or next(iter(others), None)


# ---- Hugging Face


def _image_columns(rows: Any) -> list[str]:
    return [column for column, feature in rows.features.items() if type(feature).__name__ == "Image"]


def _of_hub(source: str, parts: Mapping[str, Any], columns: tuple[str, str], wanted: str | None) -> Found:
    train, val = _held(parts, source, wanted)
    if val is not None and _chosen_columns(_image_columns(parts[val])) != columns and wanted is None:
        val = None  # a test part is often given out without label maps

    def pairs(part: str) -> tuple[Pair, ...]:
        images, maps = (EncodedImages.of(parts[part], column) for column in columns)
        return tuple((f"{part} row {n}", _row(images, n), _row(maps, n)) for n in range(len(images)))

    folder = Path(source.removeprefix(HUB))
    names, licence = _names(folder) if folder.is_dir() else (None, None)
    licence = licence or getattr(getattr(parts[train], "info", None), "license", None) or None
    note = f"split as the data set's {train} and {val}" if val else ""
    shown = f"the columns {columns[0]} and {columns[1]}"
    return Found(shown, pairs(train), pairs(val) if val else (), names, note=note, licence=licence)


def _row(rows: EncodedImages, index: int) -> Row:
    found = Row(rows, index).read()
    if isinstance(found, str):
        return Row(rows, index, Path(found).stat().st_size if Path(found).is_file() else 0)
    return Row(rows, index, len(found) if isinstance(found, bytes) else 0)


# ---- Parquet


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))


def _encoded_columns(file: Path) -> list[str]:
    """The columns that hold bytes, or a struct of bytes and a path as Hugging Face writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException):
        return []  # open_data says what is wrong with it

    def encoded(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and encoded(field.type) for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return [field.name for field in schema if encoded(field.type)]


def _of_parquet(path: Path, files: Sequence[Path], columns: tuple[str, str], wanted: str | None) -> Found:
    folder = path if path.is_dir() else path.parent
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(part_of(file.stem, alone=False) or "train", []).append(file)
    train, val = _held(groups, str(path), wanted)
    names, licence = _names(folder)
    pairs = [tuple(row for file in groups[part] for row in _read(file, columns)) for part in (train, val) if part]
    note = f"split as the files {groups[train][0].name} and {groups[val][0].name}" if val else ""
    shown = f"the columns {columns[0]} and {columns[1]}"
    return Found(shown, pairs[0], pairs[1] if val else (), names, note=note, licence=licence)


def _read(file: Path, columns: tuple[str, str]) -> list[Pair]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=list(columns))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise FoveateError(f"{file} is not a Parquet file that can be read: {first_line(error)}") from error
    for column in columns:
        if column not in table.column_names:
            raise FoveateError(f"{file} has no column {column!r}: {near(column, table.column_names)}")
    found: list[Pair] = []
    for row, pair in enumerate(zip(*(table.column(column).to_pylist() for column in columns), strict=True)):
        contents: list[Source] = []
        for column, value in zip(columns, pair, strict=True):
            content = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                raise FoveateError(f"{file} row {row}: the column {column!r} must hold encoded bytes, and has none")
            contents.append(content)
        found.append((f"{file.name} row {row}", contents[0], contents[1]))
    return found


def _names(folder: Path) -> tuple[Mapping[int, str] | None, str | None]:
    """Class names by number and the licence, as files beside the table tell them."""
    names, licence = described(folder)
    listed = folder / "id2label.json"
    if names is not None or not listed.is_file():
        return names, licence
    try:
        content = json.loads(listed.read_text("utf-8"))
        found = {int(number): str(name) for number, name in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise FoveateError(f"{listed} must hold an object from number to name: {first_line(error)}") from error
    return found, licence
