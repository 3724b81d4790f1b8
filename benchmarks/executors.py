"""The same comparison by one process and by real engines, some of whose workers are killed: the tables must be equal.

    pip install 'foveate[dask,slurm,ray,search]'
    python benchmarks/executors.py                    # processes, dask, submitit, ray
    python benchmarks/executors.py dask               # some of them
    SLURM_PARTITION=NAME python benchmarks/executors.py slurm
    python benchmarks/executors.py --storage postgresql://USER@HOST/DB storage    # two searches on one database

Images, network and fits are tiny: what is tried is that every run ends, whatever happens to the workers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: another number of threads has other last bits

import numpy as np
from PIL import Image

import foveate as fv

RECIPE = fv.Recipe(epochs=2, batch_size=8, image_size=32, learning_rate=1e-3)
FAMILY = "se|ulsam(groups=1|4) after layer1.0|layer2.0"
SEEDS = 2


def images(root: Path) -> Path:
    """Two classes of a few images."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 12)):
        for number, name in enumerate("ab"):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = (draw.random((32, 32, 3)) * 120 + number * 100).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")
    return root


def tables(folder: Path) -> list[bytes]:
    """What must be equal."""
    return [(folder / name).read_bytes() for name in ("comparison.csv", "runs.csv", "factors.csv")]


def compared(data: Path, output: Path, executor: Any = None, workers: int | None = None) -> list[bytes]:
    """The tables of the comparison."""
    options = {"executor": executor, "workers": workers, "progress": False}
    fv.compare("test_resnet", FAMILY, str(data), RECIPE, SEEDS, output=output, **options)
    return tables(output)


def kill_later(output: Path) -> threading.Thread:
    """Kill the first worker that is seen working on a run, as its claim says."""

    def kill() -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            for claim in output.glob("runs/*/claim.*"):
                with contextlib.suppress(ValueError, OSError):
                    owner = json.loads(claim.read_text())
                    if owner["pid"] != os.getpid() and not owner["released"]:
                        os.kill(owner["pid"], signal.SIGKILL)
                        print(f"  killed worker {owner['pid']} in {claim.parent.name}", flush=True)
                        return
            if (output / "comparison.csv").exists():
                break
            time.sleep(0.02)
        print("  no worker was seen at work", flush=True)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@contextmanager
def dask(output: Path) -> Iterator[tuple[Any, int]]:
    """A cluster of three worker processes, one of which is killed."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster:
        killer = kill_later(output)
        yield f"dask://{cluster.scheduler_address.removeprefix('tcp://')}", 3
        killer.join()


@contextmanager
def submitit(output: Path) -> Iterator[tuple[Any, int]]:
    """submitit's local executor: processes of their own."""
    from submitit import LocalExecutor

    yield LocalExecutor(folder=output / "jobs"), 2


def imported(_: int) -> int:
    """What a Ray worker does first: else this process has done every run before one is ready."""
    import foveate.studies.comparison.compare

    time.sleep(1)  # so that the next one goes to another worker
    return len(foveate.__name__)


@contextmanager
def ray(output: Path) -> Iterator[tuple[Any, int]]:
    """A Ray of this machine, one worker of which is killed."""
    import ray as engine

    engine.init(num_cpus=2, log_to_driver=False)
    engine.get([engine.remote(imported).remote(k) for k in range(2)])
    killer = kill_later(output)
    yield "ray:", 2
    killer.join()
    engine.shutdown()


@contextmanager
def slurm(output: Path) -> Iterator[tuple[Any, int]]:
    """Two jobs of a real Slurm, one of which is killed; ``SLURM_PARTITION`` names where."""
    killer = kill_later(output)
    yield f"slurm:{os.environ['SLURM_PARTITION']},time=30", 2
    killer.join()


@contextmanager
def processes(output: Path) -> Iterator[tuple[Any, int | None]]:
    """Three processes, this one among them; one of the others is killed."""
    killer = kill_later(output)
    yield "processes:3", None
    killer.join()


def search(data: str, output: str, storage: str) -> None:
    """One of two searches that share a database and a folder."""
    fv.search(
        "test_resnet",
        FAMILY,
        data,
        RECIPE,
        trials=4,
        finalists=1,
        seeds=1,
        output=output,
        storage=storage,
        progress=False,
    )


def shared_storage(data: Path, root: Path, storage: str) -> bool:
    """Two processes on one database, one of them killed: the other ends with all trials."""
    output = root / "search"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=search, args=(str(data), str(output), storage)) for _ in range(2)]
    for process in both:
        process.start()
    while not list(output.glob("trials/*/claim.*")):
        time.sleep(0.05)
    time.sleep(1)
    both[0].kill()
    for process in both:
        process.join()
    rows = (output / "search.csv").read_text().splitlines()
    print(f"  one of two was killed, the other ended with {both[1].exitcode} and {len(rows) - 1} trials")
    return both[1].exitcode == 0 and len(rows) == 5


def main() -> None:
    """Try the engines."""
    engines = {"processes": processes, "dask": dask, "submitit": submitit, "ray": ray}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="*", default=list(engines), choices=[*engines, "slurm", "storage"])
    parser.add_argument("--storage", default="")
    asked = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        data = images(root / "images")
        began = time.perf_counter()
        alone: list[bytes] = []
        if set(asked.engines) - {"storage"}:
            alone = compared(data, root / "alone")
            print(f"one process: {time.perf_counter() - began:.1f} s", flush=True)
        for name in asked.engines:
            began = time.perf_counter()
            if name == "storage":
                same = shared_storage(data, root, asked.storage or f"sqlite:///{root / 'search.db'}")
            else:
                with {**engines, "slurm": slurm}[name](root / name) as (executor, workers):
                    same = compared(data, root / name, executor, workers) == alone
            good, bad = ("complete", "INCOMPLETE") if name == "storage" else ("the same", "DIFFERENT")
            print(f"{name}: {good if same else bad}, {time.perf_counter() - began:.1f} s", flush=True)
            failed += [] if same else [name]
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
