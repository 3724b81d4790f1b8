"""Reading the lists of images that official data sets are given out with; nothing in them is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.errors import FoveateError, first_line

__all__ = ["lines_of", "mat_values", "pairs_of"]


def lines_of(file: Path) -> list[str]:
    """The lines of a text file, without empty ones and without those that begin with ``#``.

    Raises:
        FoveateError: the file is missing or is not text.
    """
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise FoveateError(f"{file} cannot be read: {first_line(error)}") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pairs_of(file: Path) -> dict[str, str]:
    """First word -> the rest, for each line.

    Raises:
        FoveateError: the file cannot be read, a line has one word, or two lines begin alike.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(lines_of(file), 1):
        key, _, value = line.partition(" ")
        if not value.strip() or key in found:
            raise FoveateError(f"{file} line {number}: {line!r} is not a new name and a value")
        found[key] = value.strip()
    return found


def mat_values(file: Path, key: str) -> list[Any]:
    """A variable of a MATLAB file as a flat list of whole numbers or texts. scipy reads it, if it is installed.

    Raises:
        FoveateError: scipy is not installed, the file cannot be read, or lacks the variable.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise FoveateError(f"{file} is a MATLAB file: pip install scipy to read the official split") from None
    try:
        held = loadmat(file, squeeze_me=True)[key]
    except Exception as error:
        raise FoveateError(f"{file} is damaged or holds no {key!r}: {first_line(error)}") from error
    return [value.item() if hasattr(value, "item") else value for value in held.reshape(-1).tolist()]
