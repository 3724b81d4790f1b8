"""Run by the tests in a process of its own, whose children train and kill themselves with SIGKILL in a given batch."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys

from conftest import RECIPE, make_data, make_net

from foveate.training.fit import fit


def train_and_die(output: str, changes: dict[str, object], die_at: int) -> None:
    model, batches = make_net(), 0

    def die(module, inputs):
        nonlocal batches
        if module.training:
            batches += 1
            if batches == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    model[0].register_forward_pre_hook(die)
    recipe = RECIPE.with_(**changes, checkpoint_every=3)
    teacher = make_net(seed=7) if recipe.temperature != 1 else None
    fit(model, make_data(), recipe, output=output, progress=False, teacher=teacher)


if __name__ == "__main__":
    for name in ("accelerate.utils", "torchmetrics", "torchvision.transforms.v2", "torch._dynamo"):
        importlib.import_module(name)  # what fit imports is imported once, too
    for run in json.loads(sys.argv[1]):
        child = os.fork()  # torch is imported once for all of them
        if not child:
            train_and_die(*run)
            os._exit(0)  # it should not have lived
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))
