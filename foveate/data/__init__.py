"""Where images come from: folders, Parquet files, and the packaged solar cells."""

from __future__ import annotations

from foveate.data.opening import open_data
from foveate.data.split import ImageData, Split

__all__ = ["ImageData", "Split", "open_data"]
