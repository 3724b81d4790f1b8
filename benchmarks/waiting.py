"""Training speed with threads that spin (torch's default), sleep, or do what is decided again and again.

    python benchmarks/waiting.py > benchmarks/waiting.csv      # with a number after it: so many rounds, not 5

Alone, and beside one program that keeps one core busy; "threads too" also decides how many threads there are, as
``Recipe(threads="auto")`` does. OMP_WAIT_POLICY is read once when torch is loaded, so each measurement is a process of
its own, of ten seconds after five to decide in; they take turns, and the medians of their ratios are printed to stderr.
The load, as /proc/stat has it, is that of other programs in the second before a measurement, in cores: the machine is
quiet only where it is near 0.
"""

import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 5
POLICIES = ("default", "PASSIVE", "decided", "threads too")
STEPS = """
import sys, time, timm, torch
from foveate.kernels.waiting import SharedCores
model = timm.create_model("mobilenetv2_050", num_classes=10).to(memory_format=torch.channels_last).train()
images = torch.randn(32, 3, 64, 64).contiguous(memory_format=torch.channels_last)
optimiser = torch.optim.AdamW(model.parameters())
class Never:
    def look(self): pass
def step(cores):
    cores.look()
    model(images).square().mean().backward(); optimiser.step(); optimiser.zero_grad()
def measure(cores):
    began = time.perf_counter()
    while time.perf_counter() - began < 5: step(cores)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 10: step(cores); count += 1
    print(32 * count / (time.perf_counter() - began), torch.__version__, torch.get_num_threads())
if sys.argv[1] in ("decided", "threads too"):
    with SharedCores(fewer_threads=sys.argv[1] != "decided") as cores: measure(cores)
else: measure(Never())
"""


def measure(policy):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if policy == "PASSIVE":
        environment["OMP_WAIT_POLICY"] = policy
    return subprocess.run(
        [sys.executable, "-c", STEPS, policy], env=environment, check=True, capture_output=True, text=True
    ).stdout.split()


def busy_cores(seconds=1.0):
    def ticks():
        found = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(found) - found[3] - found[4]

    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def main():
    writer = csv.writer(sys.stdout)
    columns = ["beside", "waiting", "round", "images_per_second", "load", "torch", "threads", "machine"]
    writer.writerow(columns)
    for beside in ("nothing", "one busy process"):
        ratios = {policy: [] for policy in POLICIES}
        for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS):
            found = {}
            for policy in POLICIES:
                load = busy_cores()
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside != "nothing" else None
                try:
                    speed, torch, threads = measure(policy)
                finally:
                    if busy is not None:
                        busy.kill()
                        busy.wait()
                found[policy] = float(speed)
                written = [beside, policy, number, f"{found[policy]:.1f}", f"{load:.2f}", torch, threads]
                writer.writerow([*written, platform.machine()])
                sys.stdout.flush()
            for policy in POLICIES:
                ratios[policy].append(found[policy] / found["default"])
        for policy in POLICIES[1:]:
            print(f"beside {beside}: {policy} / default = {statistics.median(ratios[policy]):.2f}", file=sys.stderr)


if __name__ == "__main__":
    main()
