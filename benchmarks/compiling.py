"""What torch.compile takes and gives in training: seconds until the first step is done, and of a step, against eager.

    python benchmarks/compiling.py > benchmarks/compiling.csv

Each network twice, in processes of their own that share one cache folder of torch's: cold, the folder is empty; warm,
it has what the first process left. Then the same network with other weights in the same process, as a comparison's next
seed. ``compiled`` is what ``fit`` takes, with matrix products in place of 1x1 convolutions; ``with_convolutions``, in
the warm process, is torch.compile alone. Steps of each kind take turns: the eager step's time is a median, the others'
are that times the median of their ratios within a round. The load is that of other programs, in cores.
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kernels import device_name
from waiting import busy_cores

CASES = (
    ("mobilenetv2_050", "", 64),
    ("mobilenetv2_050", "ulsam(groups=4) after blocks.5.2", 64),
    ("tf_efficientnet_lite0", "", 128),
    ("resnet18", "", 64),
)
COLUMNS = "network", "plan", "image_size", "cache", "compile_seconds", "next_seed_seconds", "eager_ms", "compiled_ms"
COLUMNS += ("with_convolutions_ms",)
BATCH, ROUNDS = 32, 21


def measure(network, plan, size, cache):
    import timm
    import torch

    import foveate as fv
    from foveate.training.speed.compilation import CompiledCalls

    images = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)

    def ready():
        model = timm.create_model(network, num_classes=10)
        if plan:
            fv.insert(model, plan)
        model = model.to(memory_format=torch.channels_last).train()
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        calls = {name: CompiledCalls(model, name, BATCH) for name in ("", "inductor")}
        alone = torch.compile(model._call_impl, dynamic=False)

        def step(backend):
            began = time.perf_counter()
            if backend == "alone":
                loss = alone(images).square().mean()
            else:
                with calls[backend].on(BATCH):
                    loss = model(images).square().mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            return time.perf_counter() - began

        return step

    step = ready()
    step("")
    first = step("inductor")
    following = ready()("inductor")
    forms = ("", "inductor", "alone") if cache == "warm" else ("", "inductor")
    for form in forms:
        step(form)
    rounds = [[step(form) for form in forms] for _ in range(ROUNDS)]
    eager = 1000 * statistics.median(times[0] for times in rounds)
    found = [f"{eager * statistics.median(t[at] / t[0] for t in rounds):.1f}" for at in range(len(forms))]
    found += ["-"] * (3 - len(found))
    print(f"{first:.1f} {following:.1f}", *found, torch.__version__, torch.get_num_threads())


def main():
    if len(sys.argv) > 1:
        network, plan, size, cache = sys.argv[1:]
        measure(network, plan, int(size), cache)
        return
    import torch

    machine = f"{device_name('cpu')}, {torch.backends.cpu.get_cpu_capability()}"
    writer = csv.writer(sys.stdout)
    writer.writerow([*COLUMNS, "load", "torch", "threads", "machine"])
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("cold", "warm"):
                load = busy_cores()
                command = [sys.executable, str(Path(__file__)), *map(str, case), cache]
                environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
                found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                *numbers, version, threads = found.stdout.split()
                writer.writerow([*case, cache, *numbers, f"{load:.2f}", version, threads, machine])
                sys.stdout.flush()


if __name__ == "__main__":
    main()
