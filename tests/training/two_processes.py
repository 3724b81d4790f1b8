"""Run by test_distributed.py: two processes train together, and each keeps what came of it.

Started by torchrun with a folder, changes of the recipe and a fault, it is one of the two. Started with a list of such
jobs, it forks both for each of them in turn, so that torch is imported once, and prints how they ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from conftest import RECIPE, make_data, make_norm_net, make_plain_net
from safetensors.torch import save_file

from foveate.training.fit import fit


def train(folder: str, changes: str, fault: str) -> None:
    rank, fields = int(os.environ["RANK"]), json.loads(changes)
    Path(folder, f"pid{rank}").write_text(str(os.getpid()))
    model = make_norm_net() if fields.pop("norm", False) else make_plain_net()
    batches = 0

    def break_down(module, inputs):
        nonlocal batches
        batches += module.training
        if batches == 5 and rank == 1 and fault:
            os.kill(os.getpid(), getattr(signal, fault))

    model.register_forward_pre_hook(break_down)
    options = {"output": Path(folder, "run"), "resume": fields.pop("resume", False)}
    result = fit(model, make_data(), RECIPE.with_(**fields), timeout_seconds=5 if fault else 120, **options)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, f"{folder}/weights{rank}")
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in result.history]
    probabilities = result.evaluation.probabilities.tolist()
    Path(folder, f"result{rank}").write_text(json.dumps([rows, probabilities]))


def start(rank: int, folder: str, changes: str, fault: str) -> int:
    """A forked process; what it says on stderr is in a file."""
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with Path(folder, f"stderr{rank}").open("a") as file:
        os.dup2(file.fileno(), 2)
    code = 0
    try:
        train(folder, changes, fault)
    except BaseException:  # noqa: BLE001 - it would go on as a second parent
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def run_both(folder: str, changes: str, fault: str) -> list[int]:
    """Exit codes of the two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ |= {"WORLD_SIZE": "2", **address}
    Path(folder).mkdir(exist_ok=True)
    pids = [start(rank, folder, changes, fault) for rank in range(2)]
    statuses = [os.waitpid(pids[0], 0)[1]]
    if fault:  # it is dead, or stands still
        os.kill(pids[1], signal.SIGKILL)
    statuses.append(os.waitpid(pids[1], 0)[1])
    return [os.waitstatus_to_exitcode(status) for status in statuses]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        for name in ("accelerate.utils", "torchmetrics"):
            importlib.import_module(name)  # what fit imports is imported once, too
        print(json.dumps([run_both(*job) for job in json.loads(sys.argv[1])]))
    else:
        train(*sys.argv[1:])
