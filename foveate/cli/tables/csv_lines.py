"""``--csv FILE``: plain rows as lines, to a file or to the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate import io
from foveate.errors import FoveateError

__all__ = ["check", "write_csv"]


def check(where: str | None, *, json: bool, option: str = "--csv", endings: Sequence[str] = ()) -> None:
    """Refuse what cannot be written, before anything is counted or measured. Nothing is made.

    Args:
        where: a file, ``-`` for stdout, or None.
        json: whether JSON goes to stdout.
        option: that was given.
        endings: of a file's name, where only some can be written.

    Raises:
        FoveateError: JSON goes there already, or no file can be written there.
    """
    if where is None:
        return
    if where == "-":
        if json:
            raise FoveateError("--json and --csv - both print to the terminal: give --csv a file, or leave one out")
        return
    if not where or where.endswith(os.sep) or Path(where).is_dir():
        raise FoveateError(f"{option} {where!r} is a folder: name a file in it")
    if endings and Path(where).suffix.lower() not in endings:
        raise FoveateError(f"{option} {where}: end the name in {', '.join(endings[:-1])} or {endings[-1]}")
    above = next(folder for folder in Path(where).absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise FoveateError(f"cannot write {where}: {above} is not a folder to write in; choose another place")


def write_csv(rows: Sequence[Mapping[str, object]], where: str) -> None:
    """A heading and one line for each row, to stdout where that is ``-``, else to a file, whose folder is made.

    Raises:
        FoveateError: the file cannot be written.
    """
    if where == "-":
        print(io.csv_text(rows), end="")
    else:
        io.write_csv(Path(where), rows)
