"""Finding images that cannot be used, before a network is trained on the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from foveate.data.sources import Piece, Row
from foveate.data.split import Split
from foveate.errors import FoveateError

__all__ = ["damaged", "unusable"]

# First bytes of the usual formats. What begins otherwise is decoded, because Pillow knows more formats.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")
_CHUNK = 256


def unusable(split: Split) -> dict[int, str]:
    """Find images that are empty, missing or of no known format, by a look at their first bytes.

    A truncated image is not found this way.

    Args:
        split: the images.

    Returns:
        Position of each bad image, in order, and one line that names it and says why.
    """
    return _failures(split, _look)


def damaged(split: Split) -> dict[int, str]:
    """Find images that cannot be decoded to the end, by decoding every one.

    JPEGs are decoded at the smallest scale, which still reads every byte.

    Args:
        split: the images.

    Returns:
        Position of each bad image, in order, and one line that names it and says why.
    """
    return _failures(split, _decode)


def _look(split: Split, index: int) -> None:
    source = split.sources[index]
    try:
        start = _first_bytes(source)
    except OSError:
        start = b""  # decoding says what is wrong
    if not start.startswith(_SIGNATURES):
        _decode(split, index)


def _first_bytes(source: str | bytes | Piece | Row) -> bytes:
    if isinstance(source, bytes):
        return source[:8]
    if isinstance(source, Piece):
        return replace(source, size=min(8, source.size)).read()
    if isinstance(source, Row):
        return _SIGNATURES[0]  # of another library, which has looked at it
    with Path(source).open("rb", buffering=0) as file:
        return file.read(8)


def _decode(split: Split, index: int) -> None:
    split.load(index, at_least=1)


def _failures(split: Split, check: Callable[[Split, int], None]) -> dict[int, str]:
    """Run a check on every image, on several threads: files are waited for, and Pillow decodes outside the lock."""

    def examine(start: int) -> list[tuple[int, str]]:
        found = []
        for index in range(start, min(start + _CHUNK, len(split))):
            try:
                check(split, index)
            except FoveateError as error:
                found.append((index, str(error)))
        return found

    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        return dict(failure for failures in pool.map(examine, range(0, len(split), _CHUNK)) for failure in failures)
