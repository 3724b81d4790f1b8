"""Write a file as a whole, or leave the old one; and a bar for many."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from foveate.errors import FoveateError

__all__ = ["tracked", "write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file and make its folder; whoever reads the file sees the old bytes or all of the new ones.

    Raises:
        FoveateError: the file cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FoveateError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another place") from error


def tracked(steps: range, words: str, progress: bool) -> Iterable[int]:
    """The steps, with a bar on stderr where there are several and one is wanted."""
    if not progress or len(steps) < 2:
        return steps
    from rich.console import Console
    from rich.progress import track

    return track(steps, words, console=Console(stderr=True), transient=True)
