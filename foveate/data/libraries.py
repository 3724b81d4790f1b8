"""Data sets of other libraries, by name: ``hf:NAME`` (Hugging Face datasets) and ``torchvision:NAME``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from foveate.data.division import divide
from foveate.data.parts import Unused, check_class_order, parts_of, usable
from foveate.data.sources import Row
from foveate.data.split import ImageData, Split
from foveate.errors import FoveateError, first_line, near

__all__ = ["EncodedImages", "load_hugging_face", "read_hugging_face", "read_torchvision", "shown_name"]

_Foreign: TypeAlias = Any  # a data set, or a part of one, of Hugging Face's or torchvision's

_ROOT = "data"
_TRAIN_SPLITS = ("train", "trainval")
_VAL_SPLITS = ("test", "val", "valid", "validation")


def read_hugging_face(name: str, seed: int, val_fraction: float) -> ImageData:
    """Read ``datasets.load_dataset(name)``, or a folder that ``save_to_disk`` wrote.

    The encoded images are taken and decoded by foveate's own rule. The library executes no code of a data set.

    Args:
        name: ``owner/name``, ``owner/name/configuration``, or the folder.
        seed: of the split, where the data set has none.
        val_fraction: part of each class that goes to validation, where the data set has no split.

    Raises:
        FoveateError: the library is not installed, the data set could not be downloaded, or it has no image or label
            column.
    """
    splits = load_hugging_face(name)
    named = parts_of({part: part for part in splits}, alone=True)
    train_name = named.pop("train", list(splits))[0]
    val_names = [part for same in named.values() for part in same if part != train_name]
    train, unused = splits[train_name], Unused()
    image, label = _column(train, "Image", "image", name), _column(train, "ClassLabel", "label", name)
    names = getattr(train.features[label], "names", None)
    values = [value for value in train[label] if usable(value)]
    classes = tuple(names) if names else tuple(str(value) for value in sorted(set(values)))
    positions = {value: at for at, value in enumerate(range(len(names)) if names else sorted(set(values)))}

    def split(part: str, rows: _Foreign) -> Split:
        encoded = EncodedImages.of(rows, image)
        labels = [value if not usable(value) else positions.get(value) for value in rows[label]]
        return _split(part, encoded, labels, shown_name(name), unused)

    training, validation, note = split("train", train), None, ""
    for val_name in val_names:  # a test part is often given out without labels
        others = getattr(splits[val_name].features.get(label), "names", None)
        check_class_order(names, others, f"{shown_name(name)}, the parts {train_name} and {val_name}")
        validation = split("val", splits[val_name])
        if validation.labels:
            note = f"split as the data set's {train_name} and {val_name}"
            break
    if validation is None or not validation.labels:
        training, validation, note = divide(training, val_fraction, seed)
    licence = getattr(getattr(train, "info", None), "license", None) or None
    note = "; ".join([note, *unused.as_text("row")])
    return ImageData(shown_name(name), classes, training, validation, licence, note, unused=unused.listed())


def load_hugging_face(name: str) -> dict[str, _Foreign]:
    """The parts of a data set by name. The library executes no code of a data set.

    Args:
        name: as in ``read_hugging_face``.

    Raises:
        FoveateError: the library is not installed, or the data set could not be downloaded.
    """
    library, parts = _library(), name.split("/")
    try:
        if Path(name).is_dir():
            found = library.load_from_disk(name)
        else:
            found = library.load_dataset(*(("/".join(parts[:2]), parts[2]) if len(parts) == 3 else (name,)))
    except Exception as error:
        raise FoveateError(f"hf:{name} could not be downloaded or opened: {first_line(error)}") from error
    return dict(found) if isinstance(found, Mapping) else {"train": found}


def shown_name(name: str) -> str:
    """What a data set is called: of a folder without the folders above, for it may lie anywhere."""
    return f"hf:{Path(name).resolve().name if Path(name).is_dir() else name}"


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise FoveateError("hf:NAME needs the package datasets: pip install datasets") from error


class EncodedImages:
    """Encoded images of a column of a Hugging Face data set, one at a time."""

    @classmethod
    def of(cls, rows: _Foreign, column: str) -> EncodedImages:
        """The column without the library's own decoding, and without the others, which a row would decode, too."""
        return cls(rows.select_columns([column]).cast_column(column, _library().Image(decode=False)), column)

    def __init__(self, rows: _Foreign, column: str) -> None:
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> object:
        found = self.rows[index][self.column]
        return found.get("bytes") or found["path"]


def _column(rows: _Foreign, kind: str, usual: str, name: str) -> str:
    features = rows.features
    fitting: list[str] = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if usual in features and (usual in fitting or not fitting):
        return usual
    if not fitting:
        raise FoveateError(f"hf:{name} has no {usual} column: {near(usual, features)}")
    return fitting[0]


def read_torchvision(name: str, seed: int, val_fraction: float) -> ImageData:
    """Read one of ``torchvision.datasets`` that gives an image and a class, such as ``CIFAR10``.

    It is looked for in the folder ``data``, or in ``FOLDER`` of ``NAME:FOLDER``, and downloaded there if it is missing.

    Args:
        name: ``NAME`` or ``NAME:FOLDER``.
        seed: of the split, where the data set has none.
        val_fraction: part of each class that goes to validation, where the data set has no split.

    Raises:
        FoveateError: no such data set, it could not be downloaded, or it gives no classes.
    """
    from torchvision import datasets

    kind, _, folder = name.partition(":")
    known = [each for each in datasets.__all__ if inspect.isclass(getattr(datasets, each))]
    if kind not in known:
        raise FoveateError(f"torchvision has no data set {kind!r}: {near(kind, known)}")
    make = getattr(datasets, kind)
    accepted = inspect.signature(make).parameters
    options: dict[str, object] = (
        {"root": str(Path(folder or _ROOT).expanduser().absolute())} if "root" in accepted else {}
    )
    if "train" in accepted:
        train, val = (_made(kind, make, options | {"train": part}) for part in (True, False))
        note = "split as torchvision's train and test"
    elif "split" in accepted:
        train, first = _first_made(kind, make, options, _TRAIN_SPLITS)
        val, second = _first_made(kind, make, options, _VAL_SPLITS)
        note = f"split as torchvision's {first} and {second}"
    else:
        train, val, note = _made(kind, make, options), None, ""
    unused = Unused()
    training = _split("train", _Images(train), _labels(kind, train), f"torchvision:{kind}", unused)
    if val is None:
        training, validation, note = divide(training, val_fraction, seed)
    else:
        validation = _split("val", _Images(val), _labels(kind, val), f"torchvision:{kind}", unused)
    present = sorted(set(training.labels) | set(validation.labels))
    names = getattr(train, "classes", None) or [str(label) for label in range(present[-1] + 1 if present else 0)]
    note = "; ".join([note, *unused.as_text("row")])
    return ImageData(
        f"torchvision:{kind}", tuple(map(str, names)), training, validation, note=note, unused=unused.listed()
    )


class _Images:
    """The images of a torchvision data set, without their labels."""

    def __init__(self, rows: _Foreign) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> object:
        return self.rows[index][0]


def _made(kind: str, make: Callable[..., _Foreign], options: dict[str, object]) -> _Foreign:
    accepted = inspect.signature(make).parameters
    try:
        if "download" not in accepted:
            return make(**options)
        try:
            return make(**options, download=False)
        except (RuntimeError, OSError) as error:
            refused = error
        try:
            return make(**options, download=True)
        except Exception as error:
            root = Path(str(options.get("root", _ROOT)))
            files = sorted(path.name for path in root.glob("[!.]*")) if root.is_dir() else []
            if not files:
                raise
            # What is there was refused first, such as for a wrong checksum; that the download failed comes second.
            raise FoveateError(
                f"torchvision:{kind} is not in {root}, or not whole: {first_line(refused)} (there: "
                f"{', '.join(files[:4])}); it could not be downloaded: {first_line(error)}"
            ) from error
    except FoveateError:
        raise
    except Exception as error:
        raise FoveateError(f"torchvision:{kind} could not be downloaded: {first_line(error)}") from error


def _first_made(
    kind: str, make: Callable[..., _Foreign], options: dict[str, object], names: Sequence[str]
) -> tuple[_Foreign, str]:
    failures = []
    for name in names:
        try:
            return _made(kind, make, options | {"split": name}), name
        except FoveateError as error:
            failures.append(error)
    raise failures[0]


def _labels(kind: str, rows: _Foreign) -> list[int]:
    found = next(
        (getattr(rows, a) for a in ("targets", "labels", "_labels") if getattr(rows, a, None) is not None), None
    )
    try:
        return [
            int(label) for label in (found if found is not None else (rows[index][1] for index in range(len(rows))))
        ]
    except (TypeError, ValueError) as error:
        raise FoveateError(f"torchvision:{kind} gives no single class for an image: take another data set") from error


def _split(part: str, rows: _Foreign, labels: Sequence[int | None], name: str, unused: Unused) -> Split:
    """Rows that have a class; a label below 0 says that there is none.

    Args:
        part: ``train`` or ``val``.
        rows: give the images.
        labels: for each row a position among the classes, a number below 0, or None: not a class of training.
        name: of the data set.
        unused: gets the rows without a class.

    Raises:
        FoveateError: a label is not a class of training.
    """
    names = [f"{name} {part} row {index}" for index in range(len(rows))]
    kept: list[tuple[int, int]] = []
    for index, label in enumerate(labels):
        if label is None:
            raise FoveateError(f"{names[index]}: its label is not a class of training, or it has none")
        if usable(label):
            kept.append((index, label))
        else:
            unused.add("without a class (a label below 0)", names[index])
    sources = tuple(Row(rows, index) for index, _ in kept)
    return Split(part, sources, tuple(label for _, label in kept), tuple(names[index] for index, _ in kept))
