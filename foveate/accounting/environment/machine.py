"""The machine and the compilers on it, without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from foveate import __version__
from foveate.accounting.environment.diagnosis import reason, without_home

__all__ = ["machine", "processor"]

_SECONDS = 20


def machine() -> Iterator[tuple[str, ...]]:
    """Versions of foveate, Python and the system; processor, memory, compilers."""
    yield "foveate", __version__, without_home(f"in {Path(__file__).parents[2]}")
    yield "python", f"{platform.python_implementation()} {platform.python_version()}", without_home(sys.executable)
    yield "system", platform.platform()
    yield "processor", processor()
    yield "cores", f"{_cores()} of {os.cpu_count()} for this process"
    yield "memory", _memory()
    yield from _compilers()


def processor() -> str:
    """The name of the CPU."""
    output = Path("/proc/cpuinfo")
    lines = output.read_text().splitlines() if output.is_file() else []
    named = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> str:
    if not hasattr(os, "sysconf"):
        return "unknown on this system"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"


def _compilers() -> Iterator[tuple[str, ...]]:
    """Those that the CPU's kernels are compiled with, in the order in which they are tried."""
    from foveate.kernels.c_compiler import COMPILERS

    found = False
    for name in COMPILERS:
        path = shutil.which(name)
        if path is not None:
            found = True
            yield f"compiler {name}", _first_line_of([path, "--version"]), without_home(path)
    if not found:
        yield (
            "compiler",
            "none",
            f"without one of {', '.join(COMPILERS)} the CPU computes the plain definitions: install gcc or clang",
        )


def _first_line_of(command: list[str]) -> str:
    try:
        output = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run: {reason(error)}"
    lines = (output.stdout or output.stderr).strip().splitlines()
    return lines[0] if lines else f"exit code {output.returncode}, no output"
