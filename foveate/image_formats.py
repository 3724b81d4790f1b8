"""Which image formats are read, and by what."""

from __future__ import annotations

import importlib

from PIL import Image, features

from foveate.errors import FoveateError

__all__ = ["NOT_READ", "SUFFIXES", "prepare_pillow"]

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
