"""Training speed with threads that spin (torch's default) or sleep while they wait, alone and beside another program.

    python benchmarks/waiting.py > benchmarks/waiting.csv

OMP_WAIT_POLICY is read once when torch is loaded, so each measurement is a process of its own; the two policies take
turns, and the medians of their ratios are printed to stderr.
"""

import csv
import os
import platform
import statistics
import subprocess
import sys

ROUNDS = 3
STEPS = """
import time, timm, torch
model = timm.create_model("mobilenetv2_050", num_classes=10).to(memory_format=torch.channels_last).train()
images = torch.randn(32, 3, 64, 64).contiguous(memory_format=torch.channels_last)
optimiser = torch.optim.AdamW(model.parameters())
def step():
    model(images).square().mean().backward(); optimiser.step(); optimiser.zero_grad()
for _ in range(3): step()
began, count = time.perf_counter(), 0
while time.perf_counter() - began < 4: step(); count += 1
print(32 * count / (time.perf_counter() - began), torch.__version__, torch.get_num_threads())
"""


def measure(policy):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if policy != "default":
        environment["OMP_WAIT_POLICY"] = policy
    return subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, check=True, capture_output=True, text=True
    ).stdout.split()


def main():
    writer = csv.writer(sys.stdout)
    writer.writerow(["beside", "policy", "round", "images_per_second", "torch", "threads", "machine"])
    for beside in ("nothing", "one busy process"):
        ratios = []
        for number in range(ROUNDS):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside != "nothing" else None
            try:
                found = {policy: measure(policy) for policy in ("default", "PASSIVE")}
            finally:
                if busy is not None:
                    busy.kill()
                    busy.wait()
            for policy, (speed, torch, threads) in found.items():
                writer.writerow([beside, policy, number, f"{float(speed):.1f}", torch, threads, platform.machine()])
            ratios.append(float(found["PASSIVE"][0]) / float(found["default"][0]))
        print(f"beside {beside}: PASSIVE / default = {statistics.median(ratios):.2f}", file=sys.stderr)


if __name__ == "__main__":
    main()
