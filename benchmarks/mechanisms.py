"""Every attention module, pool and head beside the copy of its input: time, in one process, round after round.

    python benchmarks/mechanisms.py                                    # writes benchmarks/mechanisms_cpu.csv
    python benchmarks/mechanisms.py --only se cbam --sizes 256@28 --batches 16 --seconds 5 --forms plain compiled timm
    python benchmarks/mechanisms.py --threads 1 --output before.csv    # called again it goes on where it was stopped
    python benchmarks/mechanisms.py --forms timm bound compiled onnxruntime --output whole.csv

Every line of the output ends with how many places are done and how long the rest takes at this pace. With every form it
is hours, most of them torch.compile's and the exporter's.

Each round times each form once, in a random order, for each finds the caches as the one before it left them; a ratio is
taken within its round, and the table has the median and the quartiles of the ratios.

``mechanisms_cpu.csv`` was measured with two threads on a quiet machine, ``--seconds 0.3``: inference with ``--forms
plain timm timm_as_wide bound`` and, channels last, ``onnxruntime``; training with ``--batches 16 --forms plain timm
timm_as_wide``, contiguous with ``--only se cbam bam non_local ulsam timm:eca``. ``mechanisms_compiled.csv``: ``--steps
inference --formats channels_last --batches 16 --forms compiled --seconds 0.3``. ``mechanisms_cpu_before.csv``, from
before the passes of the gates in C, was measured with ``--threads 1 --clock processor --steps inference`` on a busy
machine: its copies are of one thread. ``mechanisms_few_positions.csv``, with the products of rows in the place of 1x1
convolutions, which the others are older than: ``--only position non_local double --sizes 512@14 1024@7 --seconds 1
--forms plain timm timm_as_wide bound onnxruntime``. The forms are

    copy      x.clone(), of which ``copies`` are counted
    ours      the module as ``foveate`` builds it with its defaults
    plain     the same with ``foveate.use_fused(False)``
    compiled  the definition under torch.compile
    timm      timm's layer of the same name with its defaults, where there is one; of ``timm:eca`` its own
              forward pass
    timm_as_wide  of ``non_local`` timm's with half of the channels inside, as the paper and ``foveate`` have it; by
              default it has an eighth
    onnxruntime  the exported definition, in inference; its copies are of a contiguous input, whatever the format
    bound     what it cannot do without: its products on matrices that lie ready, by torch's matrix product and its
              scaled_dot_product_attention; of ``sparse`` the dense attention with the same projections

A training step is the forward pass and the gradients of the input and of each parameter. A head gets the same map at
each of its levels. Rows that the file has already are not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from kernels import FORMATS, device_name, timed, unfused
from timm.layers import get_attn
from torch import Tensor, nn
from torch.nn import functional as F

from foveate import registry
from foveate.accounting.profiling import runners
from foveate.cli.process.allocator import keep_freed_memory
from foveate.errors import FoveateError

SIZES = ("64@56", "256@28", "512@14", "1024@7")
FORMS = ("plain", "compiled", "timm", "timm_as_wide", "bound", "onnxruntime")
TIMM = {"se": "se", "cbam": "cbam", "non_local": "nl", "timm:eca": "eca"}
AS_WIDE = {"non_local": {"rd_ratio": 0.5}}
KINDS = ("attention", "pooling", "heads")
CLASSES = 1000
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}
PLACE = ("kind", "name", "step", "channels", "side", "batch", "format")
COLUMNS = (
    "device",
    "torch",
    "timm",
    "threads",
    "clock",
    "allocator",
    *PLACE,
    "form",
    "rounds",
    "ms",
    "copies",
    "copies_q1",
)
COLUMNS += ("copies_q3", "over_ours")


def build(kind: str, name: str, channels: int) -> nn.Module:
    """The module, called with one map."""
    if kind != "heads":
        return registry.build(name, channels, kind=kind)
    head = registry.build(name, tuple([channels] * registry_levels(name)), channels, CLASSES, kind=kind)
    return OfOneMap(head)


def registry_levels(name: str) -> int:
    """How many feature maps a head asks for."""
    for count in range(1, 6):
        try:
            head = registry.build(name, tuple([8] * count), 8, 2, kind="heads")
        except Exception:  # noqa: BLE001, S112 - a head says in its own way that it wants another number
            continue
        if getattr(head, "levels", count) == count:
            return count
    raise SystemExit(f"{name}: no number of levels fits")


class OfOneMap(nn.Module):
    """A head whose levels all get the same map, and as pooled features its means."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head([x] * int(self.head.levels), x.mean(dim=(2, 3)))
        return out


# ---- what cannot be done without ----


def products(x: Tensor, *convolutions: tuple[int, int]) -> list[Tensor]:
    """The 1x1 convolutions from so many to so many channels, as matrix products of rows that lie ready."""
    rows = x.shape[0] * x.shape[2] * x.shape[3]
    return [t for a, b in convolutions for t in (torch.randn(rows, a), torch.randn(b, a))]


def bound(module: nn.Module, x: Tensor) -> Callable[[], object] | None:
    """The products of a module, as inference needs them."""
    batch, m, n = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    name = type(module).__name__
    if name == "StridedSparseAttention":
        return lambda: dense_steps(module, x)
    if name == "PositionAttention":
        inside, rows = max(1, m // module.reduction), [torch.randn(batch, 1, n, m) for _ in range(3)]
        pairs = products(x, (m, 2 * inside + m))
    elif name == "NonLocal":
        inside = max(1, m // 2)
        rows, pairs = [torch.randn(batch, 1, n, inside) for _ in range(3)], products(x, (m, 3 * inside), (inside, m))
    elif name == "ChannelAttention":
        rows, pairs = [torch.randn(batch, 1, m, n) for _ in range(3)], []
    elif name == "DoubleAttention":
        few, one, two = max(1, m // 8), torch.randn(batch, max(1, m // 8), n), torch.randn(batch, n, max(1, m // 8))
        pairs = products(x, (m, 3 * few), (few, m))
        return lambda: (multiply(pairs), one @ two, (one @ two) @ one)
    else:
        return None
    return lambda: (multiply(pairs), F.scaled_dot_product_attention(*rows))


def multiply(pairs: list[Tensor]) -> list[Tensor]:
    return [a @ b.t() for a, b in zip(pairs[::2], pairs[1::2], strict=True)]


def dense_steps(module: Any, x: Tensor) -> Tensor:
    """Two steps of attention between all pairs, causal, with the projections of sparse attention."""
    for project, out in zip(module.qkv, module.out, strict=True):
        rows = project(x).flatten(2).transpose(1, 2).contiguous()
        q, k, v = (t.unflatten(2, (module.heads, -1)).transpose(1, 2) for t in rows.chunk(3, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=module.causal)
        x = x + out(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))
    return x


# ---- what is timed ----


def forms(kind: str, name: str, x: Tensor, training: bool, wanted: list[str]) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    # Weights lie as the input does: a convolution whose weights lie otherwise turns its input over first.
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    module = build(kind, name, x.shape[1]).to(x.device).to(memory_format=layout).train(training)

    def call(module: nn.Module) -> Callable[[], object]:
        if not training:
            return lambda: module(x)
        given, parameters = x.detach().requires_grad_(), list(module.parameters())
        dy = torch.randn_like(module(given))
        return lambda: torch.autograd.grad(module(given), [given, *parameters], dy, allow_unused=True)

    made = {"copy": x.clone, "ours": call(module)}
    if "plain" in wanted:
        made["plain"] = unfused(call(module))
    if "compiled" in wanted:
        made["compiled"] = unfused(call(torch.compile(module)))
    for form, arguments in (("timm", {}), ("timm_as_wide", AS_WIDE.get(name))):
        if form in wanted and name in TIMM and arguments is not None:
            layer = get_attn(TIMM[name])(x.shape[1], **arguments).to(x.device).to(memory_format=layout)
            made[form] = call(layer.train(training))
    if "onnxruntime" in wanted and not training:
        with contextlib.suppress(FoveateError):  # what the exporter or the runtime does not take has no such row
            made["onnxruntime"] = in_onnxruntime(build(kind, name, x.shape[1]).eval(), x)
    if "bound" in wanted and not training and (needed := bound(module, x)) is not None:
        made["bound"] = needed
    return made


def in_onnxruntime(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """The module as exported, on the same images."""
    setting = runners.BenchmarkConfig(x.shape[0], torch.get_num_threads(), "float32", "contiguous", "onnxruntime")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = runners.exported(module, (x.shape[1], x.shape[2], x.shape[3]), setting, Path(folder))
        return runners.session(file, x.cpu().contiguous(), setting.threads)


def rows(times: dict[str, list[float]]) -> Iterator[dict[str, object]]:
    for name, values in times.items():
        ratios = [value / copy for value, copy in zip(values, times["copy"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        over = statistics.median(v / f for v, f in zip(values, times["ours"], strict=True))
        yield {
            "form": name,
            "rounds": len(values),
            "ms": f"{statistics.median(values):.4f}",
            "copies": f"{middle:.3f}",
            "copies_q1": f"{low:.3f}",
            "copies_q3": f"{high:.3f}",
            "over_ours": f"{over:.3f}",
        }


def places(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for kind in options.kinds:
        more = [name for name in options.only or ("timm:eca",) if name.startswith("timm:") and kind == "attention"]
        names = [n for n in [*registry.names(kind), *more] if n in (options.only or [*registry.names(kind), *more])]
        lists = (options.steps, names, options.sizes, options.batches, options.formats)
        for step, name, size, batch, form in itertools.product(*lists):
            channels, side = map(int, size.split("@"))
            yield dict(zip(PLACE, (kind, name, step, channels, side, batch, form), strict=True))


def measured(output: Path) -> set[tuple[str, ...]]:
    """The places that a file has already."""
    if not output.is_file():
        return set()
    with output.open(newline="", encoding="utf-8") as file:
        return {tuple(row[key] for key in PLACE) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--only", nargs="+", help="names; default: all that are registered, and timm:eca")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="channels@side")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 16))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=tuple(FORMATS))
    parser.add_argument("--steps", nargs="+", choices=("inference", "training"), default=("inference", "training"))
    parser.add_argument(
        "--forms", nargs="*", choices=FORMS, default=("timm", "timm_as_wide", "bound"), help="beside copy and ours"
    )
    parser.add_argument("--threads", type=int, help="default: as torch has them")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="of each place, warm-up not counted; 5 rounds at least"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: the time of the one thread, to which other programs on a busy machine add little",
    )
    parser.add_argument("--output", type=Path, help="CSV; default benchmarks/mechanisms_DEVICE.csv")
    options = parser.parse_args()
    if options.clock == "processor" and (options.threads != 1 or options.device != "cpu"):
        parser.error("--clock processor counts one thread: take --device cpu --threads 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    output = options.output or Path(__file__).parent / f"mechanisms_{options.device}.csv"
    width = f", {torch.backends.cpu.get_cpu_capability()}" if options.device == "cpu" else ""
    same = {"device": device_name(options.device) + width, "torch": torch.__version__, "timm": timm.__version__}
    same |= {"threads": torch.get_num_threads(), "clock": options.clock}
    same |= {"allocator": "kept" if keep_freed_memory() else "as it is"}
    warnings.simplefilter("ignore")  # the compiler's remarks
    done = measured(output)
    with output.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        left = [place for place in places(options) if tuple(map(str, place.values())) not in done]
        began = time.perf_counter()
        for number, place in enumerate(left, 1):
            torch._dynamo.reset()
            x = torch.randn(place["batch"], place["channels"], place["side"], place["side"], device=options.device)
            x = x.contiguous(memory_format=FORMATS[place["format"]])
            training = place["step"] == "training"
            with torch.set_grad_enabled(training):
                try:
                    calls = forms(place["kind"], place["name"], x, training, options.forms)
                except ValueError as error:  # a batch norm does not train on one value for each channel
                    print(*place.values(), f"left out: {error}", flush=True)
                    continue
                times = timed(calls, options.device, options.seconds, CLOCKS[options.clock])
            found = list(rows(times))  # all of a place or none, so that a stopped run can go on
            writer.writerows(same | place | row for row in found)
            file.flush()
            minutes = (time.perf_counter() - began) / number * (len(left) - number) / 60
            rest = f"({number} of {len(left)}, {minutes:.0f} min left)"
            print(*place.values(), *(f"{row['form']}={row['copies']}" for row in found), rest, flush=True)


if __name__ == "__main__":
    main()
