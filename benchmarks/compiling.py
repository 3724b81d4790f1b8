"""What torch.compile takes and gives in training: seconds until the first step is done, and of a step, against eager.

    python benchmarks/compiling.py > benchmarks/compiling.csv

Each network twice, in processes of their own that share one cache folder of torch's: cold, the folder is empty; warm,
it has what the first process left. Then the same network with other weights in the same process, as a comparison's next
seed. Steps of both kinds take turns; a step's time is the shortest of seven. The load is that of other programs, in
cores.
"""

import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from waiting import busy_cores

CASES = (
    ("mobilenetv2_050", "", 64),
    ("mobilenetv2_050", "ulsam(groups=4) after blocks.5.2", 64),
    ("tf_efficientnet_lite0", "", 128),
    ("resnet18", "", 64),
)
COLUMNS = "network", "plan", "image_size", "cache", "compile_seconds", "next_seed_seconds", "eager_ms", "compiled_ms"
BATCH, ROUNDS = 32, 7


def measure(network, plan, size):
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

        def step(backend):
            began = time.perf_counter()
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
    rounds = [(step(""), step("inductor")) for _ in range(ROUNDS)]
    eager, compiled = (1000 * min(of_one) for of_one in zip(*rounds, strict=True))
    print(f"{first:.1f} {following:.1f} {eager:.1f} {compiled:.1f} {torch.__version__} {torch.get_num_threads()}")


def main():
    if len(sys.argv) > 1:
        network, plan, size = sys.argv[1:]
        measure(network, plan, int(size))
        return
    writer = csv.writer(sys.stdout)
    writer.writerow([*COLUMNS, "load", "torch", "threads", "machine"])
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("cold", "warm"):
                load = busy_cores()
                command = [sys.executable, str(Path(__file__)), *map(str, case)]
                environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
                found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                *numbers, version, threads = found.stdout.split()
                writer.writerow([*case, cache, *numbers, f"{load:.2f}", version, threads, platform.machine()])
                sys.stdout.flush()


if __name__ == "__main__":
    main()
