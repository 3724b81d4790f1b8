"""Run by test_killed.py in a process of its own: a search whole, one killed twice, one shared by two processes.

Everything is imported once; each worker is a fork of this process, so that the kills come during work, not imports.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torchmetrics.functional.classification  # noqa: F401 - else each worker imports it anew
from accelerate import Accelerator  # noqa: F401

import foveate as fv
from foveate.studies.comparison import scheduler as grid

FAMILY = "se(reduction=4|8)|identity after layer2.0"
RECIPE = fv.Recipe(epochs=3, batch_size=4, image_size=32, learning_rate=3e-3)


def work(data: str, output: Path) -> int:
    """A worker that searches; it notes each training that it starts, and from which epoch to which."""
    pid = os.fork()
    if pid:
        return pid
    fit = grid.fit

    def noted(model, *args, **kwargs):
        done = fit(model, *args, **kwargs)
        with (output.parent / f"{output.name}.log").open("a") as log:
            log.write(f"{kwargs['output'].parent.name} {kwargs['until_epoch']} {len(done.history)}\n")
        return done

    grid.fit = noted
    grid._PATIENCE = 0.05
    try:
        options = {"finalists": 1, "seeds": 0, "output": output, "progress": False}
        fv.search("test_resnet", FAMILY, data, RECIPE, **options)
    finally:
        sys.stdout.flush()
        os._exit(int(sys.exc_info()[0] is not None))


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(data: str, folder: Path) -> None:
    torch.set_num_threads(1)
    codes = {"whole": [status(work(data, folder / "whole"))], "killed": []}
    for pattern in ("trials/*/attempt.*/summary.csv", "trials/*/result.1.json"):  # within a trial, and between two
        pid = work(data, folder / "killed")
        while not list((folder / "killed").glob(pattern)):
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        codes["killed"].append(status(pid))
    codes["killed"].append(status(work(data, folder / "killed")))
    codes["shared"] = [status(pid) for pid in [work(data, folder / "shared") for _ in range(2)]]
    print(json.dumps(codes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
