"""Small data sets made on the spot."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Encoded noise; another seed, another picture."""

    def make(seed: int = 0, form: str = "JPEG", side: int = 12) -> bytes:
        values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, form)
        return stream.getvalue()

    return make


@pytest.fixture
def plant(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[..., Path]:
    """Make a folder of images: plant({"train/cat": 3, "val/cat": 1})."""

    def make(counts: dict[str, int], root: str = "pets") -> Path:
        for place, count in counts.items():
            folder = tmp_path / root / place
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (folder / f"{number}.jpg").write_bytes(picture(number))
        return tmp_path / root

    return make


@pytest.fixture
def rows(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[..., Path]:
    """Write a Parquet file: rows("train.parquet", labels=[0, 1], split=["train", "val"])."""

    def make(name: str, labels: list[Any], folder: str = "set", **columns: list[Any]) -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        images = columns.pop("image", None) or [picture(seed) for seed in range(len(labels))]
        pq.write_table(pa.table({"image": images, "label": labels, **columns}), path, row_group_size=4)
        return path

    return make


@pytest.fixture
def describe(tmp_path: Path) -> Callable[..., None]:
    """Write dataset.json beside the Parquet files."""

    def make(folder: str = "set", **entries: Any) -> None:
        (tmp_path / folder / "dataset.json").write_text(json.dumps(entries))

    return make
