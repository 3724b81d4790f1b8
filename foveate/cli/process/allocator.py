"""The C library's allocator, for programs that train.

A training step frees its activations and asks for as much again in the next. glibc gives large blocks back to the
system each time, which then hands out cleared pages one by one (benchmarks/allocator.csv says what that costs).
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it needs next, up to 2 GiB; whether that was possible.

    For commands alone: a library does not change its caller's allocator. What a user's environment says stands.
    """
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return False
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(adjust(_TRIM_THRESHOLD, _MOST) and adjust(_MMAP_MAX, 0))
