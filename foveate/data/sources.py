"""Where one image's encoded bytes or pixels lie, when it is neither a file of its own nor bytes in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from foveate.errors import FoveateError, first_line

__all__ = ["Piece", "Row"]


@dataclass(frozen=True)
class Piece:
    """An encoded image inside a larger file.

    Args:
        path: of the file.
        offset: of the image's first byte.
        size: its bytes.
    """

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            FoveateError: the file cannot be read, or is shorter than it was.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                found = file.read(self.size)
        except OSError as error:
            raise FoveateError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if len(found) != self.size:
            raise FoveateError(f"{self.path} is shorter than when it was opened: open the data again")
        return found


@dataclass(frozen=True)
class Row:
    """An image that another library's data set gives when it is asked for.

    Args:
        rows: ``rows[index]`` gives encoded bytes, a path or a PIL image.
        index: which one.
    """

    rows: Any
    index: int
    size: int = 0

    def __repr__(self) -> str:
        return f"Row({self.index})"

    def read(self) -> bytes | str | Image.Image:
        """The encoded bytes, a path, or the image.

        Raises:
            FoveateError: the other library fails.
        """
        try:
            found: bytes | str | Image.Image = self.rows[self.index]
        except MemoryError:
            raise
        except Exception as error:
            raise FoveateError(f"row {self.index} cannot be read: {first_line(error)}") from error
        return found
