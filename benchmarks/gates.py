"""SE and CBAM in inference: the definition, its torch.compile, and the fused passes, against the copy of the tensor.

    python benchmarks/gates.py --device cuda                  # writes benchmarks/gates_cuda.csv
    python benchmarks/gates.py --device cpu --sizes 64@14 --batches 1 --seconds 1 --output gates_cpu.csv

Each round times each form once; a ratio is taken within its round, and the table has the median and the quartiles of
the ratios. ``difference`` is that of the form's output from the definition's in float64, relative to its norm. On a
CPU there are no passes: fused is the definition.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from kernels import FORMATS, TYPES, device_name, rows, timed, unfused
from torch import Tensor, nn

from foveate import registry
from foveate.kernels.dispatch import choose

SIZES = ("64@112", "256@28", "512@14", "1024@7")
FORMS = ("plain", "plain compiled", "fused")
COLUMNS = ("device", "torch", "threads", "passes", "mechanism", "channels", "side", "batch", "format", "dtype", "form")
COLUMNS += ("rounds", "ms", "copies", "copies_q1", "copies_q3", "over_fused", "copy_gb_per_s", "difference")


def forms(module: nn.Module, x: Tensor, wanted: list[str]) -> dict[str, Callable[[], object]]:
    target = torch.empty_like(x)
    made: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(x), "plain": unfused(lambda: module(x))}
    if "plain compiled" in wanted:
        compiled = torch.compile(module)
        made["plain compiled"] = unfused(lambda: compiled(x))
    made["fused"] = lambda: module(x)
    return {name: made[name] for name in ("copy", *wanted)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--mechanisms", nargs="+", default=("se", "cbam"), help="with options: \"cbam(order='parallel')\""
    )
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="channels@side")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 32, 128))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=tuple(FORMATS))
    parser.add_argument("--types", nargs="+", choices=TYPES, default=("float32", "bfloat16"))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each combination, warm-up not counted")
    parser.add_argument("--output", type=Path, help="CSV; default benchmarks/gates_DEVICE.csv")
    options = parser.parse_args()
    output = options.output or Path(__file__).parent / f"gates_{options.device}.csv"
    same = {"device": device_name(options.device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    warnings.simplefilter("ignore")  # the compiler's remarks
    with output.open("w", newline="", encoding="utf-8") as file, torch.no_grad():
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        lists = (options.mechanisms, options.sizes, options.batches, options.formats, options.types)
        for mechanism, size, batch, form, dtype in itertools.product(*lists):
            channels, side = map(int, size.split("@"))
            torch._dynamo.reset()
            torch.manual_seed(0)
            module = registry.build(mechanism, channels, kind="attention").eval().to(options.device, TYPES[dtype])
            x = torch.randn(batch, channels, side, side, device=options.device).to(TYPES[dtype])
            x = x.contiguous(memory_format=FORMATS[form])
            calls = forms(module, x, options.forms)
            truth = copy.deepcopy(module).double()(x[:2].double())
            differences = {
                name: f"{difference(call()[:2], truth):.1e}" for name, call in calls.items() if name != "copy"
            }
            place = {
                "passes": bool(choose(x, "gates").backend),
                "mechanism": mechanism,
                "channels": channels,
                "side": side,
            }
            place |= {"batch": batch, "format": form, "dtype": dtype}
            for row in rows(timed(calls, options.device, options.seconds), 2 * x.numel() * x.element_size()):
                writer.writerow(same | place | row | {"difference": differences.get(row["form"], "")})
                print(*place.values(), *row.values(), differences.get(row["form"], ""))
            file.flush()


def difference(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


if __name__ == "__main__":
    main()
