"""Images/s and peak memory of the networks in the PatchConvNet paper's trade-off table, relative to ResNet-50.

    python benchmarks/tradeoff.py > benchmarks/tradeoff.csv
    foveate reproduce tradeoff --measured benchmarks/tradeoff.csv

Inference in float32 with random weights, one thread, at the pixels of the table. Speed: each network takes turns with
ResNet-50, BATCH images at a time, ROUNDS times or SECONDS long (three times at least); the ratio is the median over the
turns, with a 95% interval of it (``foveate.accounting.profiling.timer``). Memory, in a process of its own: the peak of
resident memory with FEW and with MANY images, less what was resident before the network was built, with an allocator
that gives freed memory back. The paper's column is for 256 images: the peak grows by a constant for each image, so it
is drawn on from FEW and MANY to 256, which this machine's memory need not hold. A network that fails has the reason in
the last column. On stderr at the end: Spearman's rank correlation of both ratios with the paper's.
"""

import csv
import gc
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

BATCH, ROUNDS, SECONDS = 1, 15, 20
FEW, MANY, PRINTED_FOR = 1, 4, 256
TABLE, REFERENCE = "tradeoff", "ResNet-50"
COLUMNS = [
    *("device", "cpu", "threads", "torch", "timm", "date", "network", "pixels", "batch", "rounds", "seconds"),
    *("speed_ratio", "speed_ratio_low", "speed_ratio_high", f"mebibytes_{FEW}", f"mebibytes_{MANY}"),
    *(f"mebibytes_{PRINTED_FOR}", "memory_ratio", "paper_speed_ratio", "paper_memory_ratio", "reason"),
]


def rows():
    from foveate.studies.reproduction.paper_tables import read_table

    return {row.name: row for row in read_table(TABLE).rows}


def prepared(name):
    """The network in eval mode, and (channels, height, width) of its images."""
    from foveate.studies.reproduction.counters import SUBJECTS

    arguments = dict(rows()[name].ours)
    subject = SUBJECTS[arguments.pop("of")](**arguments)
    return subject.module.eval(), subject.size


def runner(name):
    """A function that runs the network on so many images."""
    import torch

    model, size = prepared(name)
    return lambda count=BATCH: model(torch.ones(count, *size))


def speed(name):
    """Rounds, median seconds of a batch; ResNet-50's seconds for one of the network's: median, low and high end."""
    from foveate.accounting.profiling.timer import Quantiles, interleaved

    taken = interleaved([runner(REFERENCE), runner(name)], ROUNDS, warmup=1, seconds=SECONDS)
    ratio = Quantiles.of([one / other for one, other in taken])
    return [len(taken), Quantiles.of([other for _, other in taken]).median, ratio.median, ratio.low, ratio.high]


def memory(name):
    """MiB with FEW and with MANY images."""
    from foveate.accounting.profiling.rss import forget_peak, highest, now

    forget_peak()
    before, peaks, run = now(), [], runner(name)
    for count in (FEW, MANY):
        forget_peak()
        run(count)
        peaks.append((highest() - before) / 2**20)
    return peaks


def each(what):
    """In a process of its own: a line with the numbers of each network, or with the reason why there are none."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        prepared(REFERENCE)[0](torch.ones(1, 3, 224, 224))  # the libraries' own memory is not the network's
        for name in rows():
            gc.collect()
            try:
                print(name, *{"speed": speed, "memory": memory}[what](name), sep="\t", flush=True)
            except Exception as error:  # noqa: BLE001 - the others go on
                print(name, "failed", str(error).partition("\n")[0], sep="\t", flush=True)


def numbers(what, **environment):
    """Network -> its numbers, and network -> the reason why there are none, from a process of its own."""
    command = [sys.executable, __file__, what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    found, failed = {}, {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(what, line, end="", file=sys.stderr)
            name, *words = line.rstrip("\n").split("\t")
            if words[0] == "failed":
                failed[name] = words[1]
            else:
                found[name] = [float(word) for word in words]
    return found, failed


def cpu():
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def main():
    import timm
    import torch

    from foveate.studies.reproduction.paper_tables import spearman

    with torch.device("meta"):
        pixels = {name: prepared(name)[1][1] for name in rows()}
    printed = {name: [float(row.printed[column]) for column in (1, 3)] for name, row in rows().items()}
    paper = {
        name: [own / first for own, first in zip(n, printed[REFERENCE], strict=True)] for name, n in printed.items()
    }
    peaks, without_peaks = numbers("memory", MALLOC_MMAP_THRESHOLD_="65536")
    speeds, without_speeds = numbers("speed")
    most = {name: few + (many - few) / (MANY - FEW) * (PRINTED_FOR - FEW) for name, (few, many) in peaks.items()}
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    fixed = ["cpu", cpu(), 1, torch.__version__, timm.__version__, datetime.now(UTC).date()]
    done = []
    for name in pixels:
        fast, large = speeds.get(name), peaks.get(name)
        cells = [f"{fast[0]:.0f}", f"{fast[1]:.4f}", *(f"{ratio:.3f}" for ratio in fast[2:])] if fast else [""] * 5
        ratio = most[name] / most[REFERENCE] if large else None
        cells += [*(f"{mib:.1f}" for mib in (*large, most[name])), f"{ratio:.3f}"] if large else [""] * 4
        reason = without_speeds.get(name) or without_peaks.get(name) or ""
        writer.writerow([*fixed, name, pixels[name], BATCH, *cells, *(f"{r:.3f}" for r in paper[name]), reason])
        if fast and large:
            done.append((fast[2], paper[name][0], ratio, paper[name][1]))
    ours_speed, paper_speed, ours_memory, paper_memory = map(list, zip(*done, strict=True))
    for what, ours, theirs in (("speed", ours_speed, paper_speed), ("memory", ours_memory, paper_memory)):
        print(f"{what}: {len(ours)} networks, Spearman {spearman(ours, theirs):.2f}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:]:
        each(sys.argv[1])
    else:
        main()
