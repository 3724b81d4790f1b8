"""Images/s and peak memory of the networks in the PatchConvNet paper's trade-off table, relative to ResNet-50.

    python benchmarks/tradeoff.py > benchmarks/tradeoff.csv
    foveate reproduce tradeoff --measured benchmarks/tradeoff.csv

Inference in float32 with random weights, one thread, at the pixels of the table. Each network has a process of its own.
Memory first: the peak of resident memory with FEW and with MANY images, less the peak before the network was built
(libraries loaded, a convolution run). The paper's column is for 256 images: the peak grows by a constant for each
image, so it is drawn on from FEW and MANY to 256, which this machine's memory need not hold. Then speed: the network
takes turns with ResNet-50, BATCH images at a time; the ratio is the median over the turns, with the lowest and the
highest beside it. A network whose process fails has the reason in the last column. On stderr at the end: Spearman's
rank correlation of both ratios with the paper's.
"""

import csv
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

BATCH, TURNS = 2, 3
FEW, MANY, PRINTED_FOR = 2, 6, 256
TABLE, REFERENCE = "tradeoff", "ResNet-50"
COLUMNS = [
    *("device", "cpu", "threads", "torch", "timm", "date", "network", "pixels", "batch", "seconds"),
    *("speed_ratio", "speed_ratio_low", "speed_ratio_high", f"mebibytes_{FEW}", f"mebibytes_{MANY}"),
    *(f"mebibytes_{PRINTED_FOR}", "memory_ratio", "paper_speed_ratio", "paper_memory_ratio", "reason"),
]


def rows():
    from foveate.studies.printed import read_table

    return {row.name: row for row in read_table(TABLE).rows}


def prepare(name):
    """The network in eval mode, and (channels, height, width) of its images."""
    from foveate.studies.counted import SUBJECTS

    arguments = dict(rows()[name].ours)
    subject = SUBJECTS[arguments.pop("of")](**arguments)
    return subject.module.eval(), subject.size


def measure(name):
    """MiB with FEW and with MANY images; median seconds of a batch; median, lowest and highest ratio to ResNet-50."""
    import torch

    import foveate.studies.counted  # noqa: F401 - the libraries' own memory is not the network's

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        torch.nn.Conv2d(3, 8, 3)(torch.randn(1, 3, 32, 32))
        before = peak()
        own = prepare(name)
        peaks = [seconds(own, FEW) and peak() - before, seconds(own, MANY) and peak() - before]
        reference = prepare(REFERENCE)
        seconds(reference, BATCH)
        taken = [(seconds(reference, BATCH), seconds(own, BATCH)) for _ in range(TURNS)]
    ratios = [one / other for one, other in taken]
    return [*peaks, statistics.median(other for _, other in taken), statistics.median(ratios), min(ratios), max(ratios)]


def peak():
    """MiB of resident memory, the most so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(prepared, count):
    """Of one pass over so many images."""
    import time

    import torch

    model, size = prepared
    images = torch.randn(count, *size)
    began = time.perf_counter()
    model(images)
    return time.perf_counter() - began


def about():
    """The names, each with pixels and the paper's ratios, and what runs them."""
    import timm
    import torch

    from foveate.studies.counted import SUBJECTS

    print(torch.__version__, timm.__version__, sep="\t")
    table = rows()
    first = [float(text) for text in table[REFERENCE].printed]
    for name, row in table.items():
        arguments = dict(row.ours)
        with torch.device("meta"):
            size = SUBJECTS[arguments.pop("of")](**arguments).size
        ratios = [float(row.printed[column]) / first[column] for column in (1, 3)]
        print(name, size[1], *(f"{ratio:.3f}" for ratio in ratios), sep="\t")


def in_a_process(*words):
    """What a process of its own prints; this program stays small, because a new process begins with its peak."""
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"its process ended with code {done.returncode}")
    return done.stdout


def measured(name, first_memory):
    """The cells of a row."""
    few, many, *speeds = (float(text) for text in in_a_process("measure", name).split())
    most = few + (many - few) / (MANY - FEW) * (PRINTED_FOR - FEW)
    memory = [f"{m:.1f}" for m in (few, many, most)]
    return [f"{speeds[0]:.4f}", *(f"{r:.3f}" for r in speeds[1:]), *memory, f"{most / (first_memory or most):.3f}"]


def cpu():
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def ranks(values):
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


def main():
    versions, *lines = in_a_process("about").splitlines()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    fixed = ["cpu", cpu(), 1, *versions.split("\t"), datetime.now(UTC).date()]
    first, done = None, []
    for line in lines:
        name, pixels, *paper = line.split("\t")
        try:
            cells, reason = measured(name, first), ""
            first = first or float(cells[-2])
            done.append([float(cells[1]), float(paper[0]), float(cells[-1]), float(paper[1])])
        except RuntimeError as error:
            cells, reason = [""] * 8, str(error)
        writer.writerow([*fixed, name, pixels, BATCH, *cells, *paper, reason])
        sys.stdout.flush()
        print(f"{name}: {reason or f'{cells[1]} of the speed, {cells[-1]} of the memory'}", file=sys.stderr)
    ours_speed, paper_speed, ours_memory, paper_memory = map(list, zip(*done, strict=True))
    for what, ours, paper in (("speed", ours_speed, paper_speed), ("memory", ours_memory, paper_memory)):
        order = statistics.correlation(ranks(ours), ranks(paper))
        print(f"{what}: {len(ours)} networks, Spearman {order:.2f}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:] == ["about"]:
        about()
    elif sys.argv[1:]:
        print(*measure(sys.argv[2]))
    else:
        main()
