"""The one error a user can cause, and the words to say it with."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable

__all__ = ["FoveateError", "first_line", "near", "printable"]


class FoveateError(ValueError):
    """A request that cannot be met: what was asked, what exists, the nearest name, what to do, on one line.

    The command line prints it without a traceback and exits with ``exit_code``.
    """

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks show of it: one line, as the command line does."""
        return [f"{type(self).__name__}: {printable(str(self))}"]


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text on one line that a terminal shows and does not obey: control characters are written as their codes.

    Bytes of a file's name that Python could not read in this locale are read as UTF-8 where they are UTF-8.
    """
    if not text.isascii():
        with contextlib.suppress(UnicodeError):
            text = text.encode("utf-8", "surrogateescape").decode("utf-8")
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def near(asked: str, exist: Iterable[str], most: int = 8) -> str:
    """Say which of the names that exist come nearest to the one asked for.

    Args:
        asked: the name that was not found.
        exist: the names that could have been meant.
        most: how many names are listed when none is near.

    Returns:
        A clause for the end of an error: ``did you mean 'a' or 'b'?``, else ``there are: a, b, c``.
    """
    names = list(exist)
    close = difflib.get_close_matches(asked, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(name) for name in close)}?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:most])
    return f"there are: {shown}" + (f", and {len(names) - most} more" if len(names) > most else "")


def first_line(error: Exception) -> str:
    """The first line of another library's error, for a message of ours."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
