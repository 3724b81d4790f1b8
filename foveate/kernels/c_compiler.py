"""C source of this package, compiled at the first use with the machine's own compiler, for the machine's own processor.

The result is kept in the user's cache folder under a name that is a hash of the source, the flags and the processor.
It is loaded only if it is the user's own and nobody else can write it. Whatever fails, the answer is a reason and one
log line.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["cache_folder", "library", "openmp"]

logger = logging.getLogger("foveate")

# Sums in any order, so that they can be vectors; NaN and infinity stay what they are (no -ffast-math).
FLAGS = (
    *("-O2", "-ftree-vectorize", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
    *("-shared", "-fPIC"),
)
# As fast as -O3, compiled sooner; no calls of memcpy for a line of the cache. Clang does not know these.
GCC_FLAGS = ("-fvect-cost-model=dynamic", "-funswitch-loops", "-fno-tree-loop-distribute-patterns")
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 60
_lock = threading.Lock()


def cache_folder() -> Path:
    """Where compiled code is kept: ``$XDG_CACHE_HOME/foveate/kernels`` or ``~/.cache/foveate/kernels``."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "foveate" / "kernels"


def library(files: tuple[Path, ...], define: str) -> tuple[ctypes.CDLL | None, str]:
    """The compiled library; or None and the reason, where there is no compiler, no place to keep it, or anything fails.

    Args:
        files: the source; the first is compiled and includes the others.
        define: a name that the compiler defines.
    """
    with _lock:  # a second thread waits for the first one's compiler
        return _library(files, define)


@functools.cache
def _library(files: tuple[Path, ...], define: str) -> tuple[ctypes.CDLL | None, str]:
    try:
        return _load(files, define), ""
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        detail = str(getattr(error, "stderr", None) or error or type(error).__name__).strip().splitlines()[-1]
        logger.info("the C kernels cannot be used, so the plain definition is: %s", detail)
        return None, f"the C kernels cannot be used: {detail}"


def _load(files: tuple[Path, ...], define: str) -> ctypes.CDLL:
    if not hasattr(os, "getuid"):
        raise OSError("this system does not say whose a file is")
    folder = cache_folder()
    name = hashlib.sha256()
    for part in (*FLAGS, *GCC_FLAGS, define, _processor(), *(path.read_text(encoding="utf-8") for path in files)):
        name.update(part.encode() + b"\0")
    target = folder / f"{files[0].stem}_{define.lower()}_{name.hexdigest()[:32]}.so"
    if not target.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_own(folder, stat.S_ISDIR)
        with _alone(folder):  # a second process waits for the first one's compiler, too
            if not target.exists():
                _compile(files[0], define, target)
    _require_own(folder, stat.S_ISDIR)
    _require_own(target, stat.S_ISREG)
    return ctypes.CDLL(str(target))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else compiles into the folder meanwhile. Where a folder cannot be locked, each compiles for itself."""
    import fcntl  # not on every system; those without it have been refused by now

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which gives the lock back


def _require_own(path: Path, kind: Callable[[int], bool]) -> None:
    """Raise OSError if somebody else could have written this."""
    state = path.lstat()
    if not kind(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise OSError(f"{path} is not the user's alone")


def _compile(source: Path, define: str, target: Path) -> None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise OSError("no C compiler: none of " + ", ".join(COMPILERS))
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        processor = ("-march=native",), ("-mcpu=native",), ()  # what names it differs between compilers
        for more, native in itertools.product((GCC_FLAGS, ()), processor):
            command = [compiler, *FLAGS, *more, *native, f"-D{define}", "-o", temporary, str(source), "-lm"]
            result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            if result.returncode == 0:
                break
        else:
            raise RuntimeError(result.stderr or f"{compiler} failed")
        Path(temporary).chmod(0o700)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _processor() -> str:
    """What the code is compiled for: another machine may share the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("flags", "features", "model name", "cpu part", "isa")
    return "\n".join([platform.machine(), *(line for line in lines if line.lower().startswith(wanted))])


@functools.cache
def openmp() -> tuple[int, int]:
    """The addresses of GOMP_parallel and omp_get_thread_num in torch's own OpenMP library.

    With another there would be two pools of threads, which would wait for each other's work by spinning. (0, 0)
    where it is not found: then one thread works.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0
    mapped = {line.split(maxsplit=5)[-1] for line in lines}
    known = [path for path in mapped if Path(path).name.startswith(("libgomp", "libiomp5", "libomp"))]
    for path in sorted(known, key=lambda path: "torch" not in path):
        found = [getattr(ctypes.CDLL(path), name, None) for name in ("GOMP_parallel", "omp_get_thread_num")]
        if all(found):
            parallel, number = (ctypes.cast(entry, ctypes.c_void_p).value or 0 for entry in found if entry)
            return parallel, number
    return 0, 0
