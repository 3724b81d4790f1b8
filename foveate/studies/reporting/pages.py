"""A result as a page of Markdown, whatever kind of result it is."""

from __future__ import annotations

import os
from pathlib import Path

from foveate.errors import FoveateError
from foveate.studies.comparison.results import Comparison
from foveate.studies.reporting import markdown as comparisons
from foveate.studies.reporting import search_page as searches
from foveate.studies.reproduction import markdown as reproductions
from foveate.studies.reproduction.results import Reproduction
from foveate.studies.search.results import Search

__all__ = ["write_page"]


def write_page(
    result: Comparison | Reproduction | Search, page: str | os.PathLike[str], command: str | None = None
) -> tuple[Path, ...]:
    """Write a result as a page of Markdown, to be committed, with its pictures in ``images/`` beside it.

    A comparison's two tables are written as CSV beside the page, too.

    Args:
        result: from ``compare``, ``read_comparison``, ``search`` or ``reproduce``.
        page: the file, such as ``docs/reports/imagewoof.md``.
        command: the line that made the result, to be shown; without it a reproduction shows the usual one.

    Returns:
        The files written; the page is the last.

    Raises:
        FoveateError: ``page`` is a folder, a file cannot be written, ``result`` is something else, or a reproduction
            lacks the trade-off table, which its pictures show.
    """
    file = Path(page)
    if file.is_dir():
        raise FoveateError(f"{str(file)!r} is a folder: name a file in it")
    if isinstance(result, Comparison):
        return comparisons.write_page(result, file, command)
    if isinstance(result, Search):
        return searches.write_page(result, file, command)
    if isinstance(result, Reproduction):
        return reproductions.write_page(result, file, *([command] if command else []))
    kind = type(result).__name__  # type: ignore[unreachable]  # many callers have no type checker
    raise FoveateError(f"write_page takes what compare, read_comparison, search or reproduce returns, and not a {kind}")
