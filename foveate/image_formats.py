"""Which image formats are read, and by what; how an image's file is opened, up to its header."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features

from foveate.errors import FoveateError, near

__all__ = [
    "MAX_PIXELS",
    "NOT_READ",
    "SUFFIXES",
    "check_size",
    "image_header",
    "is_turned",
    "naming",
    "one_line",
    "open_file",
    "prepare_pillow",
    "undecoded",
]

MAX_PIXELS = 64_000_000
"""The most pixels (width times height) that are decoded unless the caller allows more: 192 MB as RGB."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".jfif", ".gif", ".avif"),
    *(".heic", ".heif", ".jpe", ".jp2", ".tga", ".pbm", ".pnm", ".dib", ".apng", ".hif"),
)
"""How the names of image files end that are read. HEIC (``.heic``, ``.heif``) needs ``pip install 'foveate[heic]'``."""

NOT_READ = (
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"),
    *(".jxl", ".svg", ".psd", ".exr", ".hdr", ".dcm", ".nii", ".nii.gz", ".fits", ".npy", ".mat", ".j2c", ".jxr"),
)
"""How the names of files end that hold images too, and are not read."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap height and width

# warnings.catch_warnings swaps one list for the whole process: two threads must not interleave.
_OPENING = threading.Lock()


def prepare_pillow(start: bytes, name: str) -> None:
    """Let Pillow read HEIC where the file begins as one, by the package pillow-heif; Pillow itself reads AVIF.

    Args:
        start: the first 64 bytes of the file, or fewer.
        name: what errors call the image.

    Raises:
        FoveateError: what reads this format is not installed.
    """
    if start[4:8] != b"ftyp":
        return
    if b"avif" in start[8:] or b"avis" in start[8:]:
        if "avif" not in features.modules or not features.check("avif"):  # Pillow before 11.3 warns of the name
            raise FoveateError(f"{name} is an AVIF image, which this Pillow cannot read: pip install -U pillow")
    elif start[8:12] in _HEIC:
        try:
            heif = importlib.import_module("pillow_heif")
        except ImportError:
            raise FoveateError(f"{name} is a HEIC image: pip install 'foveate[heic]' to read it") from None
        if "HEIF" not in Image.OPEN:
            heif.register_heif_opener()


@contextlib.contextmanager
def image_header(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> Iterator[Image.Image]:
    """An image of which only the header was read; decoding it, inside, raises errors that name it.

    Args:
        source: the path of the file, or its bytes.
        name: what errors call the image; by default the path.

    Raises:
        FoveateError: as ``open_image``.
    """
    if isinstance(source, bytes):
        name = name or f"image of {len(source)} bytes"
        stream: BinaryIO = io.BytesIO(source)
    else:
        name = name or os.fspath(source)
        stream = open_file(Path(source), name)
    with undecoded(stream, MAX_PIXELS, name) as image:
        yield image


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF's orientation swaps height and width; a damaged EXIF block says nothing about which way is up."""
    try:
        return image.getexif().get(_ORIENTATION) in _TURNED
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - EXIF is free-form and often broken; the pixels are sound
        return False


@contextlib.contextmanager
def undecoded(stream: BinaryIO, max_pixels: int, name: str) -> Iterator[Image.Image]:
    """An image of which only the header was read; the file is closed at the end.

    Args:
        stream: the file.
        max_pixels: the most that it may have.
        name: what errors call the image.

    Raises:
        FoveateError: it is empty, not an image, or too large.
    """
    with stream, naming(name):
        if not stream.read(1):
            raise FoveateError(f"{name} is empty (0 bytes): remove it or replace it")
        stream.seek(0)
        prepare_pillow(stream.read(64), name)
        stream.seek(0)
        # Pillow warns of a large header by its own limit; ours is checked before anything is decoded.
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(stream)
        check_size(image, max_pixels, name)
        yield image


def check_size(image: Image.Image, max_pixels: int, name: str) -> None:
    """Refuse an image without pixels, or with too many.

    Raises:
        FoveateError: as it says.
    """
    size = f"{image.width}x{image.height}"
    if not image.width or not image.height:
        raise FoveateError(f"{name} has no pixels ({size})")
    if image.width * image.height > max_pixels:
        raise FoveateError(f"{name} is {size}, more than {max_pixels:,} pixels: make it smaller or raise max_pixels")


def open_file(path: Path, name: str) -> BinaryIO:
    """The file of an image.

    Raises:
        FoveateError: it is missing, with the nearest name beside it, or cannot be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        if path.is_symlink():
            raise FoveateError(f"{name} is a link to a file that does not exist") from None
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FoveateError(f"no image {name}: in {path.parent} {near(path.name, beside)}") from None
    except IsADirectoryError:
        raise FoveateError(f"{name} is a folder, not an image") from None
    except (OSError, ValueError) as error:
        raise FoveateError(f"{name} cannot be read: {one_line(error)}") from error


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into one line that names the image."""
    try:
        yield
    except (FoveateError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise FoveateError(f"{name} is not an image that can be read: remove it or replace it") from None
    except Image.DecompressionBombError as error:
        raise FoveateError(f"{name} is refused: {one_line(error).split(', could')[0]}: make it smaller") from None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise FoveateError(f"{name} is damaged: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
