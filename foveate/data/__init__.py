"""Where images come from: folders, Parquet and tar files, other libraries, and the packaged solar cells."""

from __future__ import annotations

from foveate.data.opening import open_data
from foveate.data.report import DataReport, check_data
from foveate.data.split import ImageData, Split

__all__ = ["DataReport", "ImageData", "Split", "check_data", "open_data"]
