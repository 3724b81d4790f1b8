"""Training speed and memory: ``foveate train`` against timm's own training script, side by side.

Same network, folder of JPEG files, batch, optimiser, augmentation (random resized crop, flip; bicubic), workers and
threads. The contenders take turns, each in processes of its own. Images per second are those of the training steps,
data loading included, as each program reports them for its epochs after the first. Processor seconds are those of the
whole program, start and evaluation included: on a busy machine they tell more than the clock. Memory is the largest sum
of proportional set sizes over the program's processes, looked at every three seconds. Images per second of the whole
program are the training images of all epochs by its seconds, start, compilation and evaluation included.

    python benchmarks/training.py --timm-script PATH/train.py --data FOLDER        # writes benchmarks/training.csv
    python benchmarks/training.py --timm-script PATH/train.py --parquet FOLDER --images 2000 --side 128
    python benchmarks/training.py --timm-script PATH/train.py --parquet FOLDER --images 1000 --epochs 240 \
        --contenders timm "foveate, everything on" --output benchmarks/training_whole.csv

"foveate, everything on" is ``--compile auto`` with the cache and foveate's default of no worker processes, since cached
pictures need no decoding; "timm, compiled" is timm's script with ``--torchcompile``.
Each run begins with an empty folder for what torch compiles; what foveate decides about that is printed.

timm's train.py is in its repository, not in its package: https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kernels import device_name
from waiting import busy_cores

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    *("contender", "repeat", "model", "side", "batch", "workers", "images", "epochs"),
    *("images_per_second", "seconds", "cpu_seconds", "peak_mib", "whole_images_per_second"),
    *("threads", "load", "machine", "versions"),
)

_LOOK_SECONDS = 3.0  # between two looks at the memory: the system takes 30 ms for one of a process with 1 GiB

MEASURED = COLUMNS[8:13]
CONTENDERS = ("foveate", "timm", "foveate, cached", "foveate, everything on", "timm, compiled")


def write_folder(parquet: Path, folder: Path, images: int) -> None:
    """Evenly spread images of train.parquet and a tenth as many of test.parquet, as JPEG files in class folders."""
    import pyarrow.parquet as pq

    names = json.loads((parquet / "dataset.json").read_text())["class_names"]
    for part, count, name in (("train", images, "train"), ("test", max(images // 10, 20), "val")):
        rows = pq.read_table(parquet / f"{part}.parquet", columns=["image", "label"]).to_pylist()
        for number, row in enumerate(rows[:: max(len(rows) // count, 1)][:count]):
            target = folder / name / names[row["label"]].replace(" ", "_")
            target.mkdir(parents=True, exist_ok=True)
            encoded = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            (target / f"{number}.jpg").write_bytes(encoded)


def proportional_mib(root: int) -> float:
    """Sum of the proportional set sizes of a process and all below it, now."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    family, total = {root}, 0
    for _ in range(4):
        family |= {child for child, parent in parents.items() if parent in family}
    for pid in family:
        try:
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        except OSError:
            continue
        total += int(found.group(1)) if found else 0
    return total / 1024


def run(command: list[str], environment: dict[str, str]) -> tuple[str, float, float, float]:
    """What a program writes, its seconds by the clock and of the processor, and its peak memory in MiB."""
    before = os.times()
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment, text=True) as process:
            peak = 0.0
            while process.poll() is None:
                try:
                    process.wait(_LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    peak = max(peak, proportional_mib(process.pid))
        seconds = time.perf_counter() - began
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return text, seconds, used, peak


def speeds(contender: str, text: str, output: Path) -> list[float]:
    """Images per second of each epoch."""
    if contender.startswith("foveate"):
        with (output / "summary.csv").open(newline="") as file:
            return [float(row["images_per_second"]) for row in csv.DictReader(file)]
    lines = re.findall(r"^Train: (\d+) .*?\(\s*[\d.]+s,\s*([\d.]+)/s\)", text, re.MULTILINE)
    last = {int(epoch): float(speed) for epoch, speed in lines}  # the last line of an epoch has its mean
    return [last[epoch] for epoch in sorted(last)]


def commands(options: argparse.Namespace, data: Path, output: Path) -> dict[str, list[str]]:
    shared = ["--model", options.model, "--seed", "0"]
    ours = [sys.executable, "-m", "foveate", "train", str(data), *shared, "--epochs", str(options.epochs)]
    ours += ["--image-size", str(options.side), "--batch-size", str(options.batch)]
    with_workers = ["--workers", str(options.workers)]
    ours += ["--optimiser", "sgd", "--learning-rate", "0.05", "--weight-decay", "0.01", "--augmentation", "standard"]
    theirs = [
        sys.executable,
        str(options.timm_script),
        "--data-dir",
        str(data),
        *shared,
        "--epochs",
        str(options.epochs),
    ]
    theirs += ["--img-size", str(options.side), "-b", str(options.batch), "-j", str(options.workers), "--device", "cpu"]
    theirs += ["--num-classes", str(len(list((data / "train").iterdir()))), "--opt", "sgd", "--lr", "0.05"]
    theirs += ["--weight-decay", "0.01", "--sched", "cosine", "--warmup-epochs", "0", "--color-jitter", "0"]
    theirs += ["--smoothing", "0", "--train-interpolation", "bicubic", "--scale", "0.08", "1.0", "--hflip", "0.5"]
    theirs += ["--channels-last", "--log-interval", "1000", "--output", str(output), "--experiment", "timm"]
    return {
        "foveate": [*ours, *with_workers, "--no-cache", "--output", str(output / "foveate")],
        "timm": theirs,
        "foveate, cached": [*ours, *with_workers, "--output", str(output / "foveate, cached")],
        "foveate, everything on": [*ours, "--compile", "auto", "--output", str(output / "foveate, everything on")],
        "timm, compiled": [*theirs, "--torchcompile"],
    }


def main() -> None:
    import timm
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-script", type=Path, required=True, help="timm's train.py")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="a folder with train/ and val/")
    source.add_argument("--parquet", type=Path, help="a folder with train.parquet, test.parquet and dataset.json")
    parser.add_argument("--images", type=int, default=400, help="images that are taken of --parquet")
    parser.add_argument("--model", default="mobilenetv2_050")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["foveate", "timm", "foveate, cached"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "training.csv")
    options = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    rows = []
    with tempfile.TemporaryDirectory() as folder, options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        data = options.data
        if data is None:
            data = Path(folder) / "images"
            write_folder(options.parquet, data, options.images)
        images = sum(1 for path in (data / "train").rglob("*") if path.is_file())
        for repeat in range(options.repeats):
            output = Path(folder) / f"runs{repeat}"
            known = commands(options, data, output)
            for contender in options.contenders:
                load = busy_cores()
                compiled = {"TORCHINDUCTOR_CACHE_DIR": str(output / f"compiled{options.contenders.index(contender)}")}
                text, seconds, used, peak = run(known[contender], environment | compiled)
                found = speeds(contender, text, output / contender)[1:]
                row = dict.fromkeys(COLUMNS, "") | {
                    "contender": contender, "repeat": repeat, "model": options.model, "side": options.side,
                    "batch": options.batch, "workers": 0 if "everything" in contender else options.workers,
                    "images": images, "epochs": options.epochs,
                    "threads": options.threads,
                    "images_per_second": round(statistics.harmonic_mean(found), 1), "seconds": round(seconds, 1),
                    "cpu_seconds": round(used, 1), "peak_mib": round(peak),
                    "whole_images_per_second": round(images * options.epochs / seconds, 1), "load": round(load, 2),
                    "machine": f"{device_name('cpu')}, {torch.backends.cpu.get_cpu_capability()}",
                    "versions": f"torch {torch.__version__}, timm {timm.__version__}",
                }  # fmt: skip
                rows.append(row)
                writer.writerow(row)
                file.flush()
                print({key: row[key] for key in ("contender", *MEASURED, "load")}, flush=True)
                print(*re.findall(r"^compile: .*", text, re.MULTILINE), sep="\n", flush=True)
            shutil.rmtree(output, ignore_errors=True)
    middle = {
        name: {key: statistics.median(row[key] for row in rows if row["contender"] == name) for key in MEASURED}
        for name in dict.fromkeys(row["contender"] for row in rows)
    }
    for name, found in middle.items():
        timm_s = middle.get("timm", {})
        ratio = {
            key: found[key] / timm_s[key] for key in ("images_per_second", "whole_images_per_second") if key in timm_s
        }
        print(f"{name}: {found}", "of timm's script:" if ratio else "", *(f"{key} {ratio[key]:.2f}" for key in ratio))


if __name__ == "__main__":
    main()
