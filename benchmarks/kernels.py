"""ULSAM beside its peers, against the copy of the tensor: time, in one process, round after round.

    python benchmarks/kernels.py --device cpu                 # writes benchmarks/kernels_cpu.csv
    python benchmarks/kernels.py --device cuda                # writes benchmarks/kernels_cuda.csv
    python benchmarks/kernels.py --sizes 512@14 --batches 1 32 --groups 4 --seconds 10
    TRITON_INTERPRET=1 python benchmarks/kernels.py --sizes 8@7 --batches 1 3 --groups 1 4 --seconds 0.1

Each round times each form once, in a random order, for each finds the caches as the one before it left them; a ratio is
taken within its round, and the table has the median and the quartiles of the ratios. On a CPU combinations of more than
``--elements`` are left out, and named. Under Triton's interpreter the CUDA kernels run on a CPU, which shows that the
script works, and no times.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import foveate as fv
from foveate.attention.ulsam import ULSAM
from foveate.cli.process.allocator import keep_freed_memory
from foveate.kernels import dispatch as backends
from foveate.kernels.ulsam import triton_launch as ulsam_triton

SIZES = ("64@112", "128@56", "256@28", "512@14", "160@7", "1024@7")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMS = ("copy", "authors", "authors compiled", "plain", "plain compiled", "fused")


class Subspace(nn.Module):
    """One of the authors' g modules, from the paper's equations and their state dict."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dws, self.bn_dws = nn.Conv2d(channels, channels, 1, groups=channels), nn.BatchNorm2d(channels)
        self.conv_point, self.bn_point = nn.Conv2d(channels, 1, 1), nn.BatchNorm2d(1)
        self.relu, self.pool, self.softmax = nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.Softmax(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.relu(self.bn_dws(self.conv_dws(x))))
        score = self.relu(self.bn_point(self.conv_point(pooled)))
        attention = self.softmax(score.flatten(2)).view_as(score)
        return x * attention.expand_as(x) + x


class Authors(nn.Module):
    """g modules in a loop over the chunks of the channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.subspaces = nn.ModuleList(Subspace(channels // groups) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        chunks = torch.chunk(x, len(self.subspaces), dim=1)
        return torch.cat([subspace(chunk) for subspace, chunk in zip(self.subspaces, chunks, strict=True)], dim=1)


def unfused(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with fv.use_fused(False):
            return call()

    return run


def forms(x: Tensor, groups: int, training: bool, wanted: list[str]) -> dict[str, Callable[[], object]]:
    """What is timed. A training step is the forward pass and the gradients of the input and of each parameter."""
    channels = x.shape[1]
    torch.manual_seed(0)
    ours = ULSAM(channels, groups=groups).to(x.device, x.dtype).train(training)
    theirs = Authors(channels, groups).to(x.device, x.dtype).train(training)
    target, dy = torch.empty_like(x), torch.randn_like(x)

    def call(module: Callable[[Tensor], Tensor], parameters: list[nn.Parameter]) -> Callable[[], object]:
        if not training:
            return lambda: module(x)
        given = x.detach().requires_grad_()
        return lambda: torch.autograd.grad(module(given), [given, *parameters], dy)

    mine, other = list(ours.parameters()), list(theirs.parameters())
    made: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(x), "authors": call(theirs, other)}
    if "authors compiled" in wanted:
        made["authors compiled"] = call(torch.compile(theirs), other)
    made["plain"] = unfused(call(ours, mine))
    if "plain compiled" in wanted:
        made["plain compiled"] = unfused(call(torch.compile(ours), mine))
    made["fused"] = call(ours, mine)
    return {name: made[name] for name in wanted if name in made}


def timed(
    calls: dict[str, Callable[[], object]], device: str, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round. The first rounds, in which code is compiled, do not count."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for call in calls.values():
        for _ in range(3):
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    order, start = list(calls.items()), time.perf_counter()
    draw = random.Random(0)  # noqa: S311
    while time.perf_counter() - start < seconds or len(found["copy"]) < 5:
        draw.shuffle(order)
        for name, call in order:
            wait()
            before = clock()
            call()
            wait()
            found[name].append((clock() - before) * 1e3)
    return found


def rows(times: dict[str, list[float]], copied_bytes: int) -> Iterator[dict[str, object]]:
    for name, values in times.items():
        ratios = [value / copy for value, copy in zip(values, times["copy"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row = {"form": name, "rounds": len(values), "ms": f"{statistics.median(values):.4f}"}
        row |= {"copies": f"{middle:.3f}", "copies_q1": f"{low:.3f}", "copies_q3": f"{high:.3f}"}
        if "fused" in times:
            row["over_fused"] = f"{statistics.median(v / f for v, f in zip(values, times['fused'], strict=True)):.3f}"
        if name == "copy":
            row["copy_gb_per_s"] = f"{copied_bytes / statistics.median(values) / 1e6:.1f}"
        yield row


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="channels@side")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8, 32, 128))
    parser.add_argument("--groups", nargs="+", type=int, default=(1, 4, 16))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=tuple(FORMATS))
    parser.add_argument("--types", nargs="+", choices=TYPES, default=("float32",))
    parser.add_argument("--steps", nargs="+", choices=("inference", "training"), default=("inference", "training"))
    parser.add_argument("--forms", nargs="+", choices=FORMS[1:], default=FORMS[1:])
    parser.add_argument("--keep-freed", action="store_true", help="CPU: the allocator as in `foveate train`")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each combination, warm-up not counted")
    parser.add_argument("--elements", type=int, default=8_000_000, help="CPU: larger tensors are left out")
    parser.add_argument("--append", action="store_true", help="add to the file instead of writing it anew")
    parser.add_argument("--output", type=Path, help="CSV; default benchmarks/kernels_DEVICE.csv")
    options = parser.parse_args()
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    name = "interpreted" if interpreted else options.device
    output = options.output or Path(__file__).parent / f"kernels_{name}.csv"
    if interpreted:
        ulsam_triton.available = lambda _: True
        backends.BACKENDS["cpu"] = ulsam_triton.__name__
    same = {"device": device_name(options.device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    same["allocator"] = "kept" if options.keep_freed and keep_freed_memory() else "as it is"
    warnings.simplefilter("ignore")  # the compiler's remarks
    columns = [
        *same,
        "step",
        "channels",
        "side",
        "groups",
        "batch",
        "format",
        "dtype",
        "form",
        "rounds",
        "ms",
        "copies",
    ]
    columns += ["copies_q1", "copies_q3", "over_fused", "copy_gb_per_s"]
    with output.open("a" if options.append else "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not options.append:
            writer.writeheader()
        for place, options_of_place in combinations(options):
            channels, side, groups, batch, form, dtype, step = place
            if options.device == "cpu" and batch * channels * side * side > options.elements:
                print(f"left out, for it takes too long here: {options_of_place}")
                continue
            torch._dynamo.reset()
            x = torch.randn(batch, channels, side, side, device=options.device, dtype=TYPES[dtype])
            x = x.contiguous(memory_format=FORMATS[form])
            with torch.set_grad_enabled(step == "training"):
                calls = forms(x, groups, step == "training", ["copy", *options.forms])
                times = timed(calls, options.device, options.seconds)
            for row in rows(times, 2 * x.numel() * x.element_size()):
                writer.writerow(same | options_of_place | row)
                print(*options_of_place.values(), *row.values())
            file.flush()


def combinations(options: argparse.Namespace) -> Iterator[tuple[tuple, dict[str, object]]]:
    for step in options.steps:
        for size in options.sizes:
            channels, side = map(int, size.split("@"))
            for groups in options.groups:
                for batch in options.batches:
                    for form in options.formats:
                        for dtype in options.types:
                            place = (channels, side, groups, batch, form, dtype, step)
                            names = ("channels", "side", "groups", "batch", "format", "dtype", "step")
                            yield place, dict(zip(names, place, strict=True))


if __name__ == "__main__":
    main()
