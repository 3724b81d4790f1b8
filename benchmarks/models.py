"""What ULSAM costs in a whole network: MobileNetV2 with the paper's replacements, beside the same without.

    python benchmarks/models.py                     # writes benchmarks/models.csv

vanilla   mobilenetv2_100
nothing   the blocks at the paper's positions 13, 14, 16, 17 taken out
ulsam     ULSAM with four subspaces in their place, fused kernels
plain     the same without fused kernels

Each round times each network once, in a random order; the ratio to ``nothing`` is taken within the round. Eager mode
runs with the channels last; onnxruntime runs what ``torch.onnx.export`` gives.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from kernels import device_name
from torch import Tensor, nn

import foveate as fv

REPLACED = ("blocks.4.1", "blocks.4.2", "blocks.5.1", "blocks.5.2")


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    found = {"vanilla": timm.create_model("mobilenetv2_100"), "nothing": timm.create_model("mobilenetv2_100")}
    for name in REPLACED:
        found["nothing"].set_submodule(name, nn.Identity())
    for name in ("ulsam", "plain"):
        found[name] = fv.create_model("mobilenetv2_100_ulsam_13_14_16_17")
    for model in found.values():
        model.eval().to(memory_format=torch.channels_last)
    return found


def session(model: nn.Module, images: Tensor) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
        made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {made.get_inputs()[0].name: images.contiguous().numpy()}
    return lambda: made.run(None, feed)


def calls(engine: str, images: Tensor) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    for name, model in networks().items():
        if engine == "onnxruntime":
            if name != "plain":  # an exported graph has no fused kernel
                found[name] = session(model, images)
            continue
        runs = torch.compile(model) if engine == "compile" else model
        found[name] = lambda runs=runs, on=name != "plain": switched(runs, images, on)
    return found


def switched(model: Callable[[Tensor], Tensor], images: Tensor, on: bool) -> None:
    with torch.no_grad(), fv.use_fused(on):
        model(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=("eager", "compile", "onnxruntime"))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 32))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "models.csv")
    options = parser.parse_args()
    draw = random.Random(0)  # noqa: S311
    warnings.simplefilter("ignore")  # the exporter's and the compiler's remarks
    same = {"device": device_name("cpu"), "torch": torch.__version__, "threads": torch.get_num_threads()}
    columns = [*same, "engine", "batch", "network", "rounds", "ms", "over_nothing", "q1", "q3"]
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for engine in options.engines:
            for batch in options.batches:
                torch._dynamo.reset()
                images = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
                made = calls(engine, images)
                times: dict[str, list[float]] = {name: [] for name in made}
                for call in made.values():
                    for _ in range(2):
                        call()
                order, start = list(made.items()), time.perf_counter()
                while time.perf_counter() - start < options.seconds or len(times["nothing"]) < 5:
                    draw.shuffle(order)
                    for name, call in order:
                        before = time.perf_counter()
                        call()
                        times[name].append((time.perf_counter() - before) * 1e3)
                for name, values in times.items():
                    ratios = [value / nothing for value, nothing in zip(values, times["nothing"], strict=True)]
                    low, middle, high = statistics.quantiles(ratios, n=4)
                    row = {"engine": engine, "batch": batch, "network": name, "rounds": len(values)}
                    row |= {"ms": f"{statistics.median(values):.3f}", "over_nothing": f"{middle:.4f}"}
                    row |= {"q1": f"{low:.4f}", "q3": f"{high:.4f}"}
                    writer.writerow(same | row)
                    print(*row.values(), flush=True)
                file.flush()


if __name__ == "__main__":
    main()
