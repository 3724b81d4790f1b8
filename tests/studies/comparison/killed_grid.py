"""Run by test_scheduler.py in a process of its own: a grid whole, one killed three times, one shared by two processes.

Everything is imported once; each worker is a fork of this process, so that the kills come during work, not imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torchmetrics.functional.classification  # noqa: F401 - else each worker imports it anew
from accelerate import Accelerator  # noqa: F401

import foveate as fv
from foveate.studies.comparison import scheduler as grid

PLANS = ["ulsam(groups=2) after layer2.0"]
RECIPE = fv.Recipe(epochs=2, batch_size=4, image_size=32, learning_rate=3e-3, checkpoint_every=3)
SEEDS = 2
RUNS = SEEDS * (len(PLANS) + 1)


def work(data: str, output: Path) -> int:
    """A worker that makes the comparison; it notes each training that it starts."""
    pid = os.fork()
    if pid:
        return pid
    fit = grid.fit

    def noted(model, *args, **kwargs):
        with (output.parent / f"{output.name}.log").open("a") as log:
            log.write(f"{kwargs['output'].parent.name}\n")
        return fit(model, *args, **kwargs)

    grid.fit = noted
    grid._PATIENCE = 0.05
    try:
        fv.compare("test_resnet", PLANS, data, RECIPE, SEEDS, output=output, progress=False)
    finally:
        sys.stdout.flush()
        os._exit(int(sys.exc_info()[0] is not None))


def finished(output: Path) -> int:
    return len(list(output.glob("runs/*/result.json")))


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(data: str, folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    torch.set_num_threads(1)
    began = time.monotonic()
    codes = {"whole": [status(work(data, folder / "whole"))]}
    of_one = (time.monotonic() - began) / RUNS
    codes["killed"] = []
    for done in (0, 1, 2):
        pid = work(data, folder / "killed")
        while finished(folder / "killed") < done and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.005)
        until = time.monotonic() + of_one * draw.uniform(0, 1.5)
        while time.monotonic() < until and finished(folder / "killed") <= done:  # never after the last run
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        codes["killed"].append(status(pid))
    codes["killed"].append(status(work(data, folder / "killed")))
    both = [work(data, folder / "shared") for _ in range(2)]
    codes["shared"] = [status(pid) for pid in both]
    print(json.dumps(codes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
