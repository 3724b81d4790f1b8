"""Run by test_segmentation_processes.py: a run that is killed in the middle, and two processes that train one network.

Everything is imported once; each process is a fork of this one, which has run nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from foveate.data.segmentation import open_segmentation
from foveate.training.fit import fit
from foveate.training.recipes.recipe import Recipe

spec = importlib.util.spec_from_file_location("segmentation_conftest", Path(__file__).parent / "conftest.py")
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

RECIPE = Recipe(epochs=3, batch_size=3, image_size=24, learning_rate=1e-2, seed=1)
KILLED = {"augmentation": "standard", "loss": "cross_entropy+dice", "ema_decay": 0.5, "checkpoint_every": 2}
SAME = {"batch_size": 1, "accumulate": 2, "optimiser": "sgd", "augmentation": "flip", "loss": "cross_entropy+dice"}


def plain_net() -> nn.Module:
    """Without BatchNorm and dropout, whose results depend on how images are shared out."""
    model = shared.new_net()
    model.body[1], model.decoder[0] = nn.Identity(), nn.Identity()
    return model


def killed(data: str, folder: Path) -> None:
    """Train until the fifth batch, in the second epoch of three batches."""
    model, batches = shared.new_net(), 0

    def die(module, inputs):
        nonlocal batches
        batches += module.training
        if batches == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(die)
    fit(model, open_segmentation(data), RECIPE.with_(**KILLED), output=folder / "killed", progress=False)


def one_of_two(data: str, folder: Path) -> None:
    """Train as one of two processes and keep what came of it."""
    model, rank = plain_net(), os.environ["RANK"]
    result = fit(model, open_segmentation(data), RECIPE.with_(**SAME), progress=False, timeout_seconds=120)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"weights{rank}")
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in result.history]
    (folder / f"result{rank}").write_text(json.dumps([rows, result.evaluation.counts.tolist()]))


def start(work, data: str, folder: Path, **variables: str) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= variables
    code = 0
    try:
        work(data, folder)
    except BaseException:  # noqa: BLE001 - it would go on as a second parent
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def main(data: str, folder: Path) -> None:
    for name in ("accelerate.utils", "torchmetrics", "torchvision.transforms.v2"):
        importlib.import_module(name)
    pids = [start(killed, data, folder)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    pids += [start(one_of_two, data, folder, **address, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
