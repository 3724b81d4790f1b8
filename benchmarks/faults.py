"""Faults that need time or the right to mount: a full disk, many kills while saving, and a decompression bomb.

Each is injected into a real process, and what must come of it is asserted. docs/faults.md lists all faults.

    python benchmarks/faults.py [--kills 100]      # the full disk needs root, and is left out without
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MODEL = "mobilenetv2_035"  # its three files of a run need some 30 MB


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def train(data: Path, output: Path) -> subprocess.CompletedProcess[str]:
    small = ("--model", MODEL, "--image-size", "32", "--epochs", "3", "--batch-size", "8", "--learning-rate", "1e-5")
    return run("-m", "foveate", "train", str(data), *small, "--output", str(output))


def write_images(folder: Path) -> Path:
    for part, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(100 * label + number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


def a_full_disk(folder: Path, kills: int) -> str:  # noqa: ARG001
    """16: the disk fills in the second epoch; the first epoch's model is intact, and the text is one line."""
    if os.geteuid():
        return "left out: needs root to mount"
    data, disk = write_images(folder / "images"), folder / "disk"
    disk.mkdir()
    # First: how much one epoch's files need. Then a disk that has room for them and for no second copy.
    whole = train(data, folder / "whole")
    assert whole.returncode == 0, whole.stderr
    needed = sum(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={needed + 2**20}", "tmpfs", str(disk)], check=True)
    try:
        ended = train(data, disk / "run")
        assert ended.returncode == 2, ended.stderr
        last = ended.stderr.strip().splitlines()[-1]
        assert "No space left on device" in last, ended.stderr
        assert "Traceback" not in ended.stderr
        with (disk / "run" / "summary.csv").open(newline="") as file:
            epochs = len(list(csv.DictReader(file)))
        loaded = run("-m", "foveate", "cost", str(disk / "run" / "last"), "--json")
        assert loaded.returncode == 0, loaded.stderr
        assert not list((disk / "run").rglob(".*.tmp"))
        return f"exit 2, {epochs} epoch kept and loaded: {last}"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def kills_while_saving(folder: Path, kills: int) -> str:
    """14: the last model and the last checkpoint load after every kill."""
    ended = run(str(ROOT / "tests" / "training" / "killed_saves.py"), str(folder), str(kills))
    assert ended.returncode == 0, ended.stderr
    return f"{kills} kills: {ended.stdout.strip()}"


def a_bomb(folder: Path, kills: int) -> str:  # noqa: ARG001
    """3, 4: a small file with a huge picture is refused from its header, without the memory for it."""
    said = []
    for side in (12_000, 30_000):
        path, stream = folder / f"{side}.png", io.BytesIO()
        Image.MAX_IMAGE_PIXELS = None
        Image.new("1", (side, side)).save(stream, "PNG")
        path.write_bytes(stream.getvalue())
        code = (
            "import resource, sys; from foveate.images import open_image; from foveate.errors import FoveateError\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: open_image(sys.argv[1])\n"
            "except FoveateError as error: print(error)\n"
            "else: sys.exit('it was decoded')\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        ended = run("-c", code, str(path))
        assert ended.returncode == 0, ended.stderr
        text, grown = ended.stdout.strip().splitlines()
        assert "pixels" in text
        assert int(grown) < 50 * 1024
        said.append(f"{path.stat().st_size / 1000:.0f} KB, {side} pixels a side: refused, {int(grown) / 1024:.1f} MiB")
    return "; ".join(said)


FAULTS: tuple[Callable[[Path, int], str], ...] = (a_full_disk, kills_while_saving, a_bomb)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{(fault.__doc__ or '').partition(':')[0]} {fault.__name__}: {fault(Path(folder), options.kills)}")


if __name__ == "__main__":
    main()
