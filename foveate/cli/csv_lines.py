"""``--csv FILE``: plain rows as lines, to a file or to the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError, first_line

__all__ = ["write_csv"]


def write_csv(rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """A heading and one line for each row, to a file, or to stdout where that is ``-``.

    Raises:
        FoveateError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if where == "-":
        print(text.getvalue(), end="")
        return
    try:
        Path(where).write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise FoveateError(f"cannot write {where}: {first_line(error)}") from error
