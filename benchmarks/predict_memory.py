"""Resident memory of ``predict`` and ``evaluate`` while they go through 100,000 images.

    python benchmarks/predict_memory.py  # writes benchmarks/predict_memory.csv

A folder of two classes with hard links to 200 JPEG files of 64 x 64 pixels, so that the disk holds little; a small
network (timm's test_resnet) at 64 pixels. Each verb is a process of its own, which reads its VmRSS and VmHWM when so
many images are done; growth counts from the first 1,000. The last row is VmRSS after glibc was told to give back to the
system what is free (malloc_trim).
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = (1_000, 10_000, 25_000, 50_000, 75_000, 100_000)
FILES, SIZE, CLASSES = 200, 64, ("a", "b")
COLUMNS = ("verb", "images", "rss_mb", "growth_mb", "peak_mb", "seconds", "versions")


def folder_of(place: Path, count: int) -> Path:
    """Two classes of ``count`` images together; most are links to the first ones."""
    noise = np.random.default_rng(0)
    for name in CLASSES:
        (place / "data" / name).mkdir(parents=True)
    originals = []
    for number in range(FILES):
        originals.append(place / f"{number}.jpg")
        Image.fromarray(noise.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(originals[-1])
    for number in range(count):
        name = CLASSES[number % len(CLASSES)]
        os.link(originals[number % FILES], place / "data" / name / f"{number:06}.jpg")
    return place / "data"


def watch(verb: str, folder: Path, counts: list[int]) -> None:
    """Run a verb and print a line at each count: images, VmRSS, VmHWM, seconds."""
    import timm
    import torch

    import foveate as fv
    from foveate.accounting.profiling.rss import highest, now

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=len(CLASSES)).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": CLASSES}
    began, seen, left = time.perf_counter(), 0, list(counts)

    def passed(images: int) -> None:
        nonlocal seen
        seen += images
        while left and seen >= left[0]:
            row = (left.pop(0), f"{now() / 1e6:.1f}", f"{highest() / 1e6:.1f}", f"{time.perf_counter() - began:.0f}")
            print(*row, flush=True)

    if verb == "predict":
        found = fv.predict(model, folder, image_size=SIZE)
        found.write(folder.parent / "predictions.csv", each=lambda _: passed(1))
        if found.bad:
            raise SystemExit(f"{len(found.bad)} images could not be predicted: {found.bad[0]}")
        passed(0)
    else:
        model.register_forward_pre_hook(lambda _, inputs: passed(len(inputs[0])))
        found = fv.evaluate(model, folder, part="all", image_size=SIZE)
        passed(0)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    left.append(seen)
    passed(0)


def main() -> None:
    """Make the folder, run both verbs, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=list(COUNTS))
    parser.add_argument("--verb", choices=("predict", "evaluate"), help="used by the program itself")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = parser.parse_args()
    if given.verb:
        watch(given.verb, given.folder, given.counts)
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "pillow"))
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = folder_of(Path(place), max(given.counts))
        for verb in ("predict", "evaluate"):
            command = [sys.executable, __file__, "--verb", verb, "--folder", str(folder), "--counts"]
            command += map(str, given.counts)
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            lines = [line.split() for line in ended.stdout.splitlines()]
            lines[-1][0] += ", trimmed"
            for count, rss, peak, seconds in lines:
                grown = f"{float(rss) - float(lines[0][1]):.1f}"
                rows.append(dict(zip(COLUMNS, (verb, count, rss, grown, peak, seconds, versions), strict=True)))
                print({key: value for key, value in rows[-1].items() if key != "versions"}, flush=True)
    with given.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
