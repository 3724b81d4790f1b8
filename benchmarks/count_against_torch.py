"""MACs of timm's convolutional networks: ours against torch.utils.flop_counter's, which counts two for each.

    python benchmarks/count_against_torch.py [--networks 100] [--output benchmarks/count_against_torch.csv]

Ours are counted on a copy without data; torch's counter watches the network itself on an image of zeros on the CPU.
The networks are drawn evenly from timm's list: those with at least five convolutions larger than 1x1, up to 40 million
parameters, on images of at most 320 x 320. ``torch_misses`` names operations for which torch's counter has no formula
and ours does, with their MACs; the counts are equal when these make the difference. A run that is stopped goes on where
it was.
"""

from __future__ import annotations

import argparse
import csv
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv

FIELDS = (
    *("model", "input", "parameters", "macs", "macs_torch", "difference", "torch_misses", "equal"),
    *("element_ops", "unsupported", "versions"),
)
VERSIONS = f"timm {timm.__version__}, torch {torch.__version__}"
# Matrix-vector and other products that torch's counter has no formula for: MACs of a call.
MISSED = {"aten::mv": lambda a: a[0].numel(), "aten::dot": lambda a: a[0].numel()}


class Missed(TorchDispatchMode):
    """The MACs of what torch's counter does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        name = func._schema.name
        if name in MISSED:
            self.macs[name] = self.macs.get(name, 0) + MISSED[name](args)
        return func(*args, **(kwargs or {}))


@functools.cache
def convolutional(name: str) -> bool:
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:  # noqa: BLE001 - a few compute with data while they are built
        return False
    large = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return len(large) >= 5 and parameters <= 40e6 and max(model.pretrained_cfg["input_size"]) <= 320


def chosen(networks: int) -> Iterator[str]:
    """Names spread evenly over timm's list: from each place the next that is convolutional and not taken."""
    # foveate registers networks of its own.
    names = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")]
    taken = set()
    for number in range(networks):
        start = number * len(names) // networks
        around = names[start:] + names[:start]
        name = next(name for name in around if name not in taken and convolutional(name))
        taken.add(name)
        yield name


def row(name: str) -> dict[str, object]:
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"]
    cost = fv.cost(model)
    image = torch.zeros(1, *size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Missed() as missed:
        model(image)
    theirs = counter.get_total_flops() // 2
    return {
        "model": name,
        "input": "x".join(map(str, size)),
        "parameters": cost.params,
        "macs": cost.macs,
        "macs_torch": theirs,
        "difference": cost.macs - theirs,
        "torch_misses": "; ".join(f"{name} {macs}" for name, macs in missed.macs.items()),
        "equal": cost.macs == theirs + sum(missed.macs.values()),
        "element_ops": cost.element_ops,
        "unsupported": " ".join(cost.unsupported),
        "versions": VERSIONS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    if options.output.exists():
        with options.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {found["model"] for found in rows}
    with options.output.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for name in chosen(options.networks):
            if name not in done:
                rows.append({key: str(value) for key, value in row(name).items()})
                writer.writerow(rows[-1])
                file.flush()
    different = [found for found in rows if found["difference"] != "0"]
    explained = sum(found["equal"] == "True" for found in different)
    print(f"{len(rows)} networks: {len(different)} differ, of which {explained} are explained")


if __name__ == "__main__":
    main()
