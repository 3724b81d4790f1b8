"""Peak memory of a training step: predicted by ``training_memory``, and measured.

    python benchmarks/training_memory.py [--output benchmarks/training_memory.csv]

Each network trains two steps of plain SGD in a fresh process with one thread, and its resident set is read from the
kernel (Linux): the highest of the process, less what it was before the network was made, when torch had already trained
a tiny network. Two allocators: glibc's as it is, which keeps freed memory for later (``default``); and with
MALLOC_MMAP_THRESHOLD_=65536, where a tensor that is freed goes back to the system at once (``returning``), so that what
is resident is what is alive. ``plain_convolutions`` is that without oneDNN.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn import functional as F

NETWORKS = ("mobilenetv2_100", "resnet18", "resnet50", "tf_efficientnet_lite0", "convnext_atto")
SETTINGS = ((8, 160), (16, 224))  # batch size, side in pixels
WAYS = {"default": ({}, True), "returning": ({"MALLOC_MMAP_THRESHOLD_": "65536"}, True)}
WAYS["plain_convolutions"] = (WAYS["returning"][0], False)
FIELDS = (
    *("model", "batch_size", "side", "predicted", *WAYS, "default_over_predicted", "returning_over_predicted"),
    "versions",
)


def resident(what: str) -> int:
    """Bytes of this process that are in memory: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def step(model: nn.Module, images: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()
    optimizer.step()


def measure(name: str, batch_size: int, side: int, onednn: bool) -> int:
    """In a fresh process: bytes that the network and its training take at most."""
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(onednn)
    tiny = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    step(tiny, torch.rand(2, 3, 16, 16), torch.optim.SGD(tiny.parameters(), 0.1))
    before = resident("VmRSS")
    model = timm.create_model(name).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        step(model, torch.rand(batch_size, 3, side, side), optimizer)
    return resident("VmHWM") - before


def row(name: str, batch_size: int, side: int) -> dict[str, object]:
    from foveate.accounting.memory import training_memory

    with torch.device("meta"):
        model = timm.create_model(name)
    predicted = training_memory(model, batch_size, side)
    found = {}
    for way, (environment, onednn) in WAYS.items():
        command = [sys.executable, __file__, "--measure", name, str(batch_size), str(side), str(int(onednn))]
        environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found[way] = int(said.split()[-1])
    return {
        "model": name,
        "batch_size": batch_size,
        "side": side,
        "predicted": predicted,
        **found,
        "default_over_predicted": round(found["default"] / predicted, 3),
        "returning_over_predicted": round(found["returning"] / predicted, 3),
        "versions": f"timm {timm.__version__}, torch {torch.__version__}, {sys.platform}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--measure", nargs=4, metavar=("NAME", "BATCH", "SIDE", "ONEDNN"), help="in a fresh process")
    options = parser.parse_args()
    if options.measure:
        name, batch_size, side, onednn = options.measure
        print(measure(name, int(batch_size), int(side), bool(int(onednn))))
        return
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for batch_size, side in SETTINGS:
            for name in NETWORKS:
                found = row(name, batch_size, side)
                writer.writerow(found)
                file.flush()
                print({key: value for key, value in found.items() if key != "versions"})


if __name__ == "__main__":
    main()
