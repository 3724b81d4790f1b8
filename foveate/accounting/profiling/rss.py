"""The memory of this process as the kernel sees it: what is in memory now, and at most so far. Linux alone tells."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

from foveate.errors import FoveateError

__all__ = ["forget_peak", "highest", "now"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def now() -> int:
    """Bytes of this process that are in memory.

    Raises:
        FoveateError: the system does not tell.
    """
    return _read("VmRSS:")


def highest() -> int:
    """The most bytes that were in memory since the process began, or since ``forget_peak``.

    Raises:
        FoveateError: the system does not tell.
    """
    return _read("VmHWM:")


def forget_peak() -> None:
    """Give freed memory back to the system, and count the highest from now.

    Raises:
        FoveateError: the system does not let a process do so.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")  # "5" resets the peak, see proc(5)
    except OSError as error:
        raise FoveateError(f"this system does not let a process measure its peak memory: {error.strerror}") from error


def _read(key: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError as error:
        raise FoveateError("resident memory is measured on Linux alone: /proc/self/status is missing") from error
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
