"""Data sets as their authors give them out, with the authors' own split."""

from __future__ import annotations

from foveate.data.official.layouts import find_official, read_official

__all__ = ["find_official", "read_official"]
