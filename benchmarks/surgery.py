"""How long surgery takes: the sites of a network, and a plan of 200 placements beyond the probe that finds the sites.

    python benchmarks/surgery.py [--rounds 5] [--output benchmarks/surgery.csv]

Seconds of the clock and of the processor, medians over the rounds; one thread.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def timed(task: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()

    import timm
    import torch

    import foveate as fv

    torch.set_num_threads(1)
    rows: list[tuple[object, ...]] = []

    def write(what: str, network: str, seconds: list[tuple[float, float]]) -> None:
        clock, processor = (round(statistics.median(values), 3) for values in zip(*seconds, strict=True))
        rows.append((what, network, len(seconds), clock, processor, platform.machine(), torch.__version__))
        print(what, network, clock, processor)

    model = timm.create_model("mobilenetv2_100")
    write("sites, the first time", "mobilenetv2_100", [timed(lambda: fv.sites(model))])
    write("sites", "mobilenetv2_100", [timed(lambda: fv.sites(model)) for _ in range(options.rounds)])
    model = timm.create_model("resnetv2_152")
    blocks = [site.name for site in fv.sites(model) if site.kind == "block"]
    places = [f"{block}.{layer}" for block in blocks for layer in ("conv1", "norm2", "conv2", "conv3")][:200]
    for name in ("se", "cbam", "ulsam"):
        plan = "; ".join(f"{name} after {place}" for place in places)
        beyond = []
        for _ in range(options.rounds):
            probing = timed(lambda: fv.sites(model))
            inserting = timed(lambda plan=plan: fv.insert(model, plan))
            beyond.append((inserting[0] - probing[0], inserting[1] - probing[1]))
            assert len(fv.attentions(model)) == len(places) == 200
            fv.remove(model)
        write(f"insert 200 {name}, beyond sites", "resnetv2_152", beyond)
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("what", "network", "rounds", "seconds", "processor_seconds", "machine", "torch"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
