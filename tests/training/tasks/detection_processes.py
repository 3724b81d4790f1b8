"""Run by test_detection_processes.py: a detector's run that is killed, and two processes that train one detector."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.layers import freeze_batch_norm_2d

from foveate.data.detection import open_detection
from foveate.dense import create_detector
from foveate.training.fit import fit
from foveate.training.recipes.recipe import Recipe

spec = importlib.util.spec_from_file_location("processes", Path(__file__).parent / "processes.py")
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

RECIPE = Recipe(epochs=2, batch_size=2, image_size=64, learning_rate=1e-2, seed=1, optimiser="adamw")
ONE_EACH = {"batch_size": 1, "optimiser": "sgd"}  # a process has one image of a step
KILLED = {"augmentation": "standard", "ema_decay": 0.5, "checkpoint_every": 2}


def new_detector():
    torch.manual_seed(0)
    return create_detector("test_efficientnet", "ssdlite(width=0.1)", classes=("red", "green"))


def new_frozen():
    """One whose normalisation does not depend on the batch: a batch of one image has maps of a single number."""
    return freeze_batch_norm_2d(new_detector())


def new_masked():
    """One that learns masks, too."""
    torch.manual_seed(0)
    head = "mask_rcnn(width=8, hidden=16, anchor=8, regions=16, threshold=0.0, detections=5)"
    return create_detector("test_efficientnet", head, classes=("red", "green"))


def killed(data: str, folder: Path) -> None:
    """Train until the fifth batch, in the second epoch of three batches."""
    model, batches = new_detector(), 0

    def die(module, inputs):
        nonlocal batches
        batches += module.training
        if batches == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(die)
    fit(model, open_detection(data), RECIPE.with_(**KILLED), output=folder / "killed", progress=False)


def one_of_two(data: str, folder: Path) -> None:
    """Train as one of two processes and keep what came of it."""
    model, rank = new_masked(), os.environ["RANK"]
    result = fit(model, open_detection(data), RECIPE, progress=False, timeout_seconds=120)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"weights{rank}")
    found = {f"{n}": rows.contiguous() for n, rows in enumerate(result.evaluation.found)}
    found |= {f"masks{n}": torch.from_numpy(masks.array()) for n, masks in enumerate(result.evaluation.masks)}
    found["map"] = torch.tensor([result.evaluation.map, result.evaluation.mask_map], dtype=torch.float64)
    save_file(found, folder / f"found{rank}")
    model = new_frozen()
    fit(model, open_detection(data), RECIPE.with_(**ONE_EACH), progress=False, timeout_seconds=120)
    save_file({name: value.detach().contiguous() for name, value in model.named_parameters()}, folder / f"one{rank}")


def main(data: str, folder: Path) -> None:
    for name in ("accelerate.utils", "torchmetrics.detection", "torchvision.transforms.v2"):
        importlib.import_module(name)
    pids = [shared.start(killed, data, folder)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    pids += [shared.start(one_of_two, data, folder, **address, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
