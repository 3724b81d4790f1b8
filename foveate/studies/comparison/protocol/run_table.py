"""Finished runs as one table of text: enough to go on with a comparison where its weights are not.

A row has everything of a run's result: scores, cost, times, versions, and its predictions. These are written as their
distance to the labels, (prediction - label) modulo the number of classes, which is 0 where the image was right; the
bytes (two each, the low one first, from 257 classes on) are deflated (zlib) and written in base64. Which images were
right can so be read without the data, and the predictions with them.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveate.accounting.cost import Cost
from foveate.errors import FoveateError
from foveate.io import JsonObject, make_folder, write_csv
from foveate.studies.comparison.run import Run, RunResult, read_result, write_result

__all__ = ["keep", "read_table", "restore", "row_of", "were_right"]

Rows = dict[tuple[str, str], dict[str, str]]
_KEYS = ("run", "plan", "seed", "epochs", "of", "images", "classes")
_LAST = ("diverged", "predictions")
_MOST_IMAGES = 100_000_000
_COST = [field.name for field in dataclasses.fields(Cost) if field.type == "int"]


def row_of(run: Run, result: RunResult, classes: int, until_epoch: int | None = None) -> JsonObject:
    """A run's result as a row.

    Args:
        run: what it is.
        result: what it gave.
        classes: how many the data have.
        until_epoch: after which it paused; None: it is finished.
    """
    predictions, labels = result.predictions.long(), result.labels.long()
    distance = ((predictions - labels) % classes).numpy().astype("<u1" if classes <= 256 else "<u2")
    return {
        "run": run.name,
        "plan": run.plan,
        "seed": run.recipe.seed,
        "epochs": run.recipe.epochs if until_epoch is None else until_epoch,
        "of": run.recipe.epochs,
        "images": len(labels),
        "classes": classes,
        **{f"score {name}": value for name, value in result.scores.items()},
        **{f"cost {name}": getattr(result.cost, name) for name in _COST},
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1),
        **{f"made with {name}": value for name, value in result.made_with.items()},
        "diverged": result.diverged,
        "predictions": base64.b64encode(zlib.compress(distance.tobytes(), 9)).decode(),
    }


def read_table(file: str | os.PathLike[str]) -> Rows:
    """The rows of a table by run and number of epochs; none where there is no file.

    Raises:
        FoveateError: the file cannot be read, or is not such a table.
    """
    try:
        with Path(file).open(encoding="utf-8", newline="") as opened:
            csv.field_size_limit(1 << 27)
            reader = csv.DictReader(opened)
            rows = list(reader)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FoveateError(f"cannot read the runs in {file}: {getattr(error, 'strerror', None) or error}") from error
    if missing := [name for name in (*_KEYS, *_LAST) if name not in (reader.fieldnames or ())]:
        raise FoveateError(f"{file} is not a table of runs: it has no column {missing[0]!r}")
    for number, row in enumerate(rows, 1):
        whole = None not in row and None not in row.values()
        if not whole or not all(row[name].removeprefix("-").isdecimal() for name in ("seed", "epochs")):
            wrong = "a seed or epochs that are not numbers" if whole else "too few or too many cells"
            raise FoveateError(f"{file} is damaged: its row {number} has {wrong}: take it out, or get the table anew")
    return {(row["run"], row["epochs"]): row for row in rows}


def keep(file: str | os.PathLike[str], rows: Iterable[Mapping[str, object]]) -> Path:
    """Add rows of ``row_of`` to a table; what it has already stays as it is. The order is that of plans and seeds.

    Returns:
        The file.

    Raises:
        FoveateError: the file is not such a table, or cannot be written.
    """
    found: dict[tuple[str, str], Mapping[str, object]] = dict(read_table(file))
    for row in rows:
        found.setdefault((str(row["run"]), str(row["epochs"])), row)
    ordered = sorted(
        found.values(),
        key=lambda row: (
            row["plan"] != "none",
            str(row["plan"]),
            int(str(row["seed"])),
            row["run"],
            int(str(row["epochs"])),
        ),
    )
    names = dict.fromkeys(name for row in ordered for name in row)
    columns = [*(name for name in names if name not in _LAST), *_LAST]
    return write_csv(Path(file), ordered, columns)


def were_right(row: Mapping[str, str]) -> Tensor:
    """(N,) bool, which images a row's run had right.

    Raises:
        FoveateError: the row is damaged.
    """
    return _distance(row) == 0


def restore(
    file: str | os.PathLike[str],
    folder: Path,
    runs: Sequence[Run],
    labels: Sequence[int],
    until_epoch: int | None = None,
) -> int:
    """Write the results that a table has of some runs into a folder of runs, where they are missing.

    Args:
        file: the table.
        folder: of the runs.
        runs: those that are wanted.
        labels: of the images that they were judged by.
        until_epoch: results of a pause, not of the end.

    Returns:
        How many were written.

    Raises:
        FoveateError: a row is damaged, contradicts itself, or is about other images.
    """
    rows, written = read_table(file), 0
    truth = torch.tensor(labels, dtype=torch.int32)
    for run in runs:
        row = rows.get((run.name, str(run.recipe.epochs if until_epoch is None else until_epoch)))
        if row is None or read_result(folder / run.name, until_epoch) is not None:
            continue
        result = _result(row, truth, file)
        write_result(make_folder(folder / run.name), run, result, until_epoch)
        written += 1
    return written


def _distance(row: Mapping[str, str]) -> Tensor:
    try:
        classes, images = int(row["classes"]), int(row["images"])
        kind = np.dtype("<u1" if classes <= 256 else "<u2")
        if not 0 <= images <= _MOST_IMAGES:
            raise ValueError(f"it says that it is about {images} images")
        # No more than that is unpacked: a few bytes can stand for gigabytes.
        most = images * kind.itemsize + 1
        raw = zlib.decompressobj().decompress(base64.b64decode(row["predictions"], validate=True), most)
        found = np.frombuffer(raw, kind)
        if len(found) != images or (images and int(found.max()) >= classes):
            raise ValueError("its predictions are not those of its images")
    except (KeyError, ValueError, zlib.error) as error:
        raise FoveateError(f"the row of the run {row.get('run')} is damaged: {error}") from error
    return torch.from_numpy(found.astype(np.int64))


def _result(row: Mapping[str, str], labels: Tensor, file: str | os.PathLike[str]) -> RunResult:
    def numbers(kind: str) -> dict[str, str]:
        return {name.removeprefix(kind): value for name, value in row.items() if name.startswith(kind) and value != ""}

    distance, name = _distance(row), row["run"]
    try:
        scores = {key: float(value) for key, value in numbers("score ").items()}
        counts: JsonObject = {key: int(value) for key, value in numbers("cost ").items() if key in _COST}
        cost = Cost(**counts)
        times = float(row["seconds"]), float(row["images_per_second"])
        made_with = numbers("made with ")
    except (KeyError, ValueError, TypeError) as error:
        raise FoveateError(f"{file}: the row of the run {name} is damaged: {error}") from error
    if row["diverged"]:
        none = torch.empty(0, dtype=torch.int32)
        return RunResult({}, cost, none, none, *times, made_with, row["diverged"])
    if len(distance) != len(labels):
        raise FoveateError(f"{file}: the run {name} was judged by {len(distance)} images, and here are {len(labels)}")
    top1 = 100 * float((distance == 0).double().mean())
    if not math.isclose(scores.get("top1", math.nan), top1, abs_tol=1e-3):
        raise FoveateError(f"{file}: the row of the run {name} says top-1 {scores.get('top1')}, its predictions {top1}")
    predictions = ((labels.long() + distance) % int(row["classes"])).to(torch.int32)
    return RunResult(scores, cost, predictions, labels, *times, made_with)
