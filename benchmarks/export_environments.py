"""The generated programs in environments that hold the runtime, numpy and Pillow, and nothing else that is asked for.

    python benchmarks/export_environments.py [FORMAT ...]  # writes benchmarks/export_environments.csv

A small network with attention is exported to each format with ``example=True``. For each a new virtual environment gets
what the program says that it needs, and the program classifies a picture there; its five probabilities are compared
with ``foveate.predict`` of the network. The environments are removed. Needs the extras of the formats, and ``uv``.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

import foveate as fv
from foveate.errors import FoveateError
from foveate.exporters.format import find_format
from foveate.io import write_csv

FORMATS = ("onnx", "openvino", "ncnn", "executorch")
SIZE, CLASSES = 64, ("left", "right", "up", "down", "none")
LISTED = "import importlib.metadata as m; print(*sorted({d.name for d in m.distributions()}))"


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=len(CLASSES)).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": CLASSES, "input_size": (3, SIZE, SIZE)}
    model.fc.weight.data *= 30  # so that no two classes are as probable
    return fv.insert(model, "ulsam after layer3", input_size=SIZE).eval()


def command(*arguments: str) -> str:
    """What a program prints; no package of this environment is found by it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    ended = subprocess.run(arguments, capture_output=True, text=True, env=clean, check=False)
    if ended.returncode:
        raise RuntimeError(f"{arguments[0]}: {ended.stderr.strip().splitlines()[-1]}")
    return ended.stdout


def row(name: str, model: torch.nn.Module, picture: Path, folder: Path) -> dict[str, object]:
    made = fv.export(model, name, folder / name / "net", images=4, size=SIZE, time=False, example=True)
    place = folder / "environment"
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    wanted = (*find_format(name).example_requires, "numpy", "pillow")
    try:
        command(uv, "venv", "--quiet", "--python", sys.executable, str(place))
        python = str(place / "bin" / "python")
        command(uv, "pip", "install", "--quiet", "--python", python, *wanted)
        installed = command(python, "-c", LISTED).split()
        lines = [line.split(" ", 1) for line in command(python, str(made.example), str(picture)).splitlines()]
        megabytes = sum(file.lstat().st_size for file in place.rglob("*") if file.is_file()) / 1e6
    finally:
        shutil.rmtree(place, ignore_errors=True)
    (expected,) = fv.predict(model, picture, image_size=SIZE)
    labels = [label for label, _ in expected.top]
    return {
        "format": name,
        "needs": " ".join(wanted),
        "installed": len(installed),
        "megabytes": f"{megabytes:.0f}",
        "has_foveate": "foveate" in installed,
        "same_order": [label for _, label in lines] == labels,
        "difference": max(abs(float(one) - other) for (one, _), (_, other) in zip(lines, expected.top, strict=True)),
        "reason": "",
    }


def main() -> None:
    """A row for each format."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).save(folder / "picture.png")
        for name in sys.argv[1:] or FORMATS:
            try:
                rows.append(row(name, network(), folder / "picture.png", folder))
            except (FoveateError, RuntimeError) as error:
                rows.append(
                    {**dict.fromkeys(rows[0] if rows else ("format",), ""), "format": name, "reason": str(error)}
                )
            print(rows[-1], flush=True)
    table = Path(__file__).with_suffix(".csv")
    made = {str(one["format"]): one for one in rows}
    with table.open(newline="", encoding="utf-8") as file:  # the formats that were not asked for keep their rows
        kept = {one["format"]: one for one in csv.DictReader(file)}
    write_csv(table, [of for name in FORMATS if (of := made.get(name, kept.get(name)))], digits=2)


if __name__ == "__main__":
    main()
