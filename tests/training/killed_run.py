"""Run by test_resume.py in a process of its own: trains, and kills itself with SIGKILL in a given training step."""

from __future__ import annotations

import os
import signal
import sys

from conftest import RECIPE, make_data, make_net

from foveate.training import fit


def main(output: str, workers: int, augmentation: str, die_at_step: int) -> None:
    model, steps = make_net(), 0

    def die(module, inputs):
        nonlocal steps
        if module.training:
            steps += 1
            if steps == die_at_step:
                os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(die)
    recipe = RECIPE.with_(workers=workers, augmentation=augmentation, checkpoint_every=3, ema_decay=0.5)
    fit(model, make_data(), recipe, output=output, progress=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
