"""Peak memory and time of the attentions that look at all places, against the same equations with the N x N matrix.

    python benchmarks/attention_memory.py > benchmarks/attention_memory.csv

One image of 64 channels, one thread. The plain forms are written here from the papers' equations, with the module's
own weights; before anything is measured, both are compared. Memory: each case is a process of its own; the peak of its
resident memory, less the peak before the case ran (libraries loaded, input made, a small map tried). Time: both forms
take turns in one process, medians. Ratios are plain / foveate. sparse stands at 32, 64 and 128 pixels to show how it
grows; its plain form at 128 would need 4 GiB for the masked scores alone and is left out.
"""

import csv
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

CHANNELS, SMALL, REPETITIONS = 64, 8, 3
# (spec, side of the map, the passes, whether there is a plain form)
BOTH = ("forward", "forward+backward")
CASES = (
    ("non_local", 128, BOTH, True),
    ("non_local(form='gaussian')", 128, ("forward",), True),
    ("position", 128, BOTH, True),
    ("sparse", 32, BOTH, True),
    ("sparse", 64, BOTH, True),
    ("sparse", 128, BOTH, False),
)


def plain(spec, module, x):
    """The equations, every pair at once: q, k and v are (B, N, d)."""
    name = spec.partition("(")[0]
    if name == "sparse":
        return plain_sparse(module, x)
    convolutions = ("theta", "phi", "g") if name == "non_local" else ("query_conv", "key_conv", "value_conv")
    q, k, v = (getattr(module, part)(x).flatten(2).transpose(1, 2) for part in convolutions)
    y = ((q @ k.transpose(1, 2)).softmax(dim=2) @ v).transpose(1, 2).unflatten(2, x.shape[2:])
    return x + module.bn(module.out(y)) if name == "non_local" else x + module.gamma * y


def plain_sparse(module, x):
    """Two steps of causal attention under a mask of all pairs: the last l places, then every l-th place before."""
    import torch

    length = x.shape[3]
    back = torch.arange(x.shape[2] * length)[:, None] - torch.arange(x.shape[2] * length)
    for step, pattern in enumerate([(back >= 0) & (back < length), (back >= 0) & (back % length == 0)]):
        rows = module.qkv[step](x).flatten(2).unflatten(1, (3, module.heads, -1)).transpose(3, 4)
        q, k, v = rows.unbind(1)  # (B, heads, N, d)
        scores = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(~pattern, float("-inf"))
        y = (scores.softmax(dim=3) @ v).transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])
        x = x + module.out[step](y)
    return x


def prepare(spec):
    """The module, with nothing at 0, and both forms as functions of the map."""
    import torch

    from foveate import build

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = build(spec, CHANNELS).eval()
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    forms = {"foveate": module, "plain": lambda x: plain(spec, module, x)}
    small = torch.randn(1, CHANNELS, SMALL, SMALL)
    torch.testing.assert_close(forms["plain"](small), forms["foveate"](small), rtol=1e-4, atol=1e-4)
    for form in forms.values():
        run(form, small, "forward+backward")
    return module, forms


def run(form, x, which):
    import torch

    if which == "forward":
        with torch.no_grad():
            form(x)
    else:
        form(x).sum().backward()


def memory(spec, size, which, form):
    """MiB above what the process had at its peak before."""
    import resource

    import torch

    _, forms = prepare(spec)
    x = torch.randn(1, CHANNELS, size, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(forms[form], x, which)
    return [(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]


def seconds(spec, size, which, *names):
    """The median of each form, taking turns."""
    import time

    import torch

    module, forms = prepare(spec)
    x = torch.randn(1, CHANNELS, size, size)
    taken = {name: [] for name in names}
    for _ in range(REPETITIONS):
        for name in names:
            began = time.perf_counter()
            run(forms[name], x, which)
            taken[name].append(time.perf_counter() - began)
            module.zero_grad()
    return [statistics.median(taken[name]) for name in names]


def in_a_process(measure, *arguments):
    """This program stays small, because a new process begins with the peak of the one that starts it."""
    command = [sys.executable, __file__, measure, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def cpu():
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def main():
    writer = csv.writer(sys.stdout)
    columns = ["device", "cpu", "threads", "torch", "date", "case", "pass", "form", "size"]
    writer.writerow([*columns, "seconds", "mebibytes", "seconds_ratio", "mebibytes_ratio"])
    fixed = ["cpu", cpu(), 1, in_a_process("version")[0], datetime.now(UTC).date()]
    for spec, size, passes, has_plain in CASES:
        for which in passes:
            forms = ["foveate", "plain"] if has_plain else ["foveate"]
            took = [float(t) for t in in_a_process("seconds", spec, size, which, *forms)]
            used = [float(in_a_process("memory", spec, size, which, form)[0]) for form in forms]
            for form, second, mebibyte in zip(forms, took, used, strict=True):
                ratios = [f"{second / took[0]:.2f}", f"{mebibyte / used[0]:.2f}"]
                row = [*fixed, spec, which, form, f"1x{CHANNELS}x{size}x{size}", f"{second:.4f}", f"{mebibyte:.1f}"]
                writer.writerow([*row, *ratios])
                print(f"{spec} {size} px {which} {form}: {second:.3f} s, {mebibyte:.0f} MiB", file=sys.stderr)
            sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["version"]:
        import torch

        print(torch.__version__)
    elif sys.argv[1:]:
        measure, spec, size, *rest = sys.argv[1:]
        print(*{"memory": memory, "seconds": seconds}[measure](spec, int(size), *rest))
    else:
        main()
