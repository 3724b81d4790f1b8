"""What this machine has, for a bug report: versions, kernels, devices, compiler, optional packages.

torch and everything else is imported inside, where a failure is a line of the answer. So this works, and says why,
where ``import torch`` itself fails.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from foveate.accounting.environment.diagnosis import Diagnosis, Finding, reason, without_home
from foveate.accounting.environment.machine import machine
from foveate.accounting.environment.packages import extras, packages

__all__ = ["doctor"]

_VARIABLES = (
    *("FOVEATE_FUSED", "FOVEATE_LOG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES"),
    *("CC", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "PYTHONPATH"),
)


def doctor() -> Diagnosis:
    """Find out what a bug report needs: versions, kernels in use and why not, threads, GPU, compiler, extras.

    It never raises: what cannot be found out, or is broken, is a line that says so. Every package that ``foveate``
    needs is imported, and each fused kernel is compiled or loaded, to see whether that works. Nothing is sent anywhere,
    and of the environment only variables that matter here are shown, with the home folder written as ``~``.

    Returns:
        Lines in sections, and the problems among them.
    """
    sections: dict[str, Callable[[], Iterable[tuple[str, ...] | Finding]]] = {
        "system": machine,
        "packages": packages,
        "extras": extras,
        "torch": _torch,
        "devices": _devices,
        "kernels": _kernels,
        "environment": _environment,
    }
    findings: list[Finding] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are imported here for the first time
        for section, look in sections.items():
            findings += _looked_at(section, look)
    return Diagnosis(tuple(findings))


def _looked_at(section: str, look: Callable[[], Iterable[tuple[str, ...] | Finding]]) -> Iterator[Finding]:
    """The lines of a section, up to where it fails."""
    try:
        for line in look():
            yield line if isinstance(line, Finding) else Finding(section, line[0], line[1], "".join(line[2:]))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever is broken here is what the person wants to know
        yield Finding(section, "not found out", reason(error), problem=True)


def _torch() -> Iterator[tuple[str, ...]]:
    import torch

    yield "threads of an operation", str(torch.get_num_threads())
    yield "threads between operations", str(torch.get_num_interop_threads())
    yield "CPU instructions", torch.backends.cpu.get_cpu_capability()
    backends = {"MKL": torch.backends.mkl, "oneDNN": torch.backends.mkldnn, "OpenMP": torch.backends.openmp}
    for name, backend in backends.items():
        yield name, "available" if backend.is_available() else "not available"
    yield "built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    yield "deterministic algorithms", "on" if torch.are_deterministic_algorithms_enabled() else "off"


def _devices() -> Iterator[Finding]:
    """Each accelerator, with one small operation run on it."""
    import torch

    found = False
    for kind in ("cuda", "xpu", "mps"):
        module = getattr(torch, kind, None)
        if module is None or not module.is_available():
            continue
        for index in range(module.device_count()):
            found = True
            yield _device(torch, kind, index)
    if not found:
        why = "torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        yield Finding("devices", "accelerator", "none, the CPU computes", why)


def _device(torch: Any, kind: str, index: int) -> Finding:
    name = f"{kind}:{index}"
    try:
        value = kind
        if kind == "cuda":
            of = torch.cuda.get_device_properties(index)
            value = f"{of.name}, capability {of.major}.{of.minor}, {of.total_memory / 2**30:.1f} GiB"
            value += f", cuDNN {torch.backends.cudnn.version()}"
        works = bool(torch.ones(2, device=name).sum().item() == 2)
    except Exception as error:  # noqa: BLE001 - a driver may fail in any way
        return Finding("devices", name, f"does not compute: {reason(error)}", problem=True)
    return Finding("devices", name, value, "" if works else "it computes wrong sums", problem=not works)


def _kernels() -> Iterator[tuple[str, ...]]:
    """Each fused kernel: in use, or why not."""
    from foveate.kernels.dispatch import backends

    for family, device, dtype, choice in backends():
        name = f"{family} on {device} in {dtype}"
        yield (name, "fused") if choice.backend else (name, "the plain definition", without_home(choice.reason))


def _environment() -> Iterator[tuple[str, ...]]:
    for name in _VARIABLES:
        if name in os.environ:
            yield name, without_home(os.environ[name])
