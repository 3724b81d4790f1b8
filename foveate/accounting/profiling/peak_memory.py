"""The peak memory of a forward pass, measured: the resident set of a fresh process, or what CUDA's allocator says.

The network goes to the process as a folder that ``foveate.save`` writes, so that nothing is pickled. There the
libraries are loaded and a convolution is run before; the peak is of the network's weights and of what its pass takes on
top.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from foveate.accounting.profiling.rss import forget_peak, highest, now
from foveate.accounting.profiling.runners import BenchmarkConfig, device_of, exported, random_images, ready, session
from foveate.errors import FoveateError
from foveate.networks import origin_of
from foveate.surgery.saving.checkpoint import load, save

__all__ = ["measured_peak"]

PASSES = 2


def measured_peak(model: nn.Module, size: tuple[int, int, int], setting: BenchmarkConfig, folder: Path) -> int:
    """Bytes that a network and a forward pass take at most.

    Args:
        model: a copy in eval mode; it may be converted in place.
        size: (channels, height, width) of the images.
        setting: how it is run.
        folder: of this network alone, for what is exported or saved.

    Raises:
        FoveateError: it cannot be measured; why.
    """
    if setting.backend == "compile":
        raise FoveateError("peak memory is not measured of a compiled network: the compiler's own would be in it")
    device = device_of(model).type
    if device == "cuda" and setting.backend == "eager":
        return _on_cuda(model, size, setting, folder)
    if device != "cpu" and setting.backend == "eager":
        raise FoveateError(f"peak memory is measured on the CPU and on CUDA, not on {device}")
    now()  # says where it cannot be measured
    if setting.backend == "onnxruntime":
        network = exported(model, size, setting, folder)
    elif origin_of(model) is None:
        raise FoveateError(
            f"peak memory of {type(model).__name__} cannot be measured: neither timm nor torchvision builds it by "
            "name, so no fresh process can"
        )
    else:
        network = save(model, folder / "saved")
    return _in_a_process({"network": str(network), "size": size, "setting": asdict(setting)})


def _on_cuda(model: nn.Module, size: tuple[int, int, int], setting: BenchmarkConfig, folder: Path) -> int:
    device = device_of(model)
    with ready(model, size, setting, folder) as run:
        run()
        others = torch.cuda.memory_allocated(device) - _bytes(model)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - others


def _bytes(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _in_a_process(job: dict[str, object]) -> int:
    here = str(Path(__file__).parents[3])  # where the process finds us, installed or not
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=json.dumps(job), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with code {done.returncode}"]
        raise FoveateError(f"peak memory cannot be measured: {lines[-1]}")
    return int(done.stdout.split()[-1])


def _main() -> None:
    """In the fresh process: measure what stdin says, and print the bytes."""
    job = json.loads(sys.stdin.read())
    setting, size, network = BenchmarkConfig(**job["setting"]), tuple(job["size"]), Path(job["network"])
    torch.set_num_threads(setting.threads)
    if setting.backend == "onnxruntime":
        importlib.import_module("onnxruntime")  # its own memory is not the network's
        before = now()
        run = session(network, random_images(size, setting), setting.threads)
        print(_peak(run) - before)
        return
    F.conv2d(torch.zeros(1, 3, 32, 32), torch.zeros(8, 3, 3, 3))
    before = now()
    with ready(load(network).eval(), size, setting, network) as run:
        print(_peak(run) - before)


def _peak(run: Callable[[], object]) -> int:
    forget_peak()
    for _ in range(PASSES):
        run()
    return highest()


if __name__ == "__main__":
    _main()
