"""Run by test_faults.py: children save without a pause, each is killed at some moment, and what is there must load."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import make_net

from foveate.surgery.saving.checkpoint import load, save
from foveate.training.checkpoint import Position, read_state, save_state
from foveate.training.run_folder import RunFolder


def save_for_ever(folder: Path) -> None:
    model = make_net()
    optimiser = torch.optim.SGD(model.parameters())
    for step in range(10**9):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        save(model, folder / "last", {"step": step})
        save_state(folder / "training.safetensors", {"model": model}, optimiser, Position(step=step), {})


def main(folder: Path, kills: int) -> None:
    random.seed(0)
    torch.set_num_threads(1)  # children are forked
    for _ in range(kills):
        child = os.fork()
        if not child:
            save_for_ever(folder)
        while not (folder / "training.safetensors").exists():  # the first saves both once
            time.sleep(0.01)
        time.sleep(random.random() / 6)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        RunFolder(folder, resume=True)  # cleans up
        left = [path.name for path in folder.rglob(".*.tmp")]
        assert not left, left
        if not (folder / "last" / "model.safetensors").exists():
            continue
        loaded, again = load(folder / "last", make_net()), make_net()
        values = {parameter.flatten()[0].item() for parameter in loaded.parameters()}
        assert len(values) == 1, "a mixture of two saves"
        if (folder / "training.safetensors").exists():
            read_state(folder / "training.safetensors", {"model": again}, torch.optim.SGD(again.parameters()), {})
    assert values, "nothing was saved: give the children more time"
    print("loaded after every kill")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
