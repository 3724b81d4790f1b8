"""A training step with glibc's allocator as it is, and keeping what is freed, as ``foveate train`` does.

    python benchmarks/allocator.py > benchmarks/allocator.csv

Each measurement is a process of its own; the two take turns, and the medians of their ratios are printed to stderr.
"""

import csv
import platform
import statistics
import subprocess
import sys

ROUNDS = 5
STEPS = """
import resource, sys, time, timm, torch
from foveate.cli.process.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
model = timm.create_model("mobilenetv2_050", num_classes=10).train()
images, labels = torch.randn(32, 3, 128, 128), torch.randint(0, 10, (32,))
optimiser = torch.optim.AdamW(model.parameters())
def step():
    torch.nn.functional.cross_entropy(model(images), labels).backward(); optimiser.step(); optimiser.zero_grad()
for _ in range(3): step()
faults, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
while sum(seconds) < 6:
    began = time.perf_counter(); step(); seconds.append(time.perf_counter() - began)
after = resource.getrusage(resource.RUSAGE_SELF)
faults = (after.ru_minflt - faults) / len(seconds)
print(sorted(seconds)[len(seconds) // 2] * 1e3, faults, after.ru_maxrss / 1024, torch.__version__)
"""


def main():
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["allocator", "round", "ms_per_step", "page_faults_per_step", "peak_mib", "torch", "machine"])
    ratios = []
    for number in range(ROUNDS):
        found = {}
        for way in ("as it is", "kept"):
            done = subprocess.run([sys.executable, "-c", STEPS, way], check=True, capture_output=True, text=True)
            ms, faults, peak, torch = done.stdout.split()
            found[way] = float(ms)
            row = [way, number, f"{found[way]:.1f}", f"{float(faults):.0f}", f"{float(peak):.0f}"]
            writer.writerow([*row, torch, platform.machine()])
        ratios.append(found["as it is"] / found["kept"])
    print(f"as it is / kept = {statistics.median(ratios):.2f}", file=sys.stderr)


if __name__ == "__main__":
    main()
