"""What the commands ask of the C library's allocator."""

import ctypes
import subprocess
import sys

import pytest

from foveate.cli.process import allocator

STEPS = """
import resource, sys
from foveate.cli.process.allocator import keep_freed_memory
assert keep_freed_memory() is (sys.argv[1] == "kept")
def step():
    blocks = [b'x' * 32_000_000 for _ in range(4)]
for _ in range(2): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_memory_is_used_again(monkeypatch):
    def faults(way):
        done = subprocess.run([sys.executable, "-c", STEPS, way], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    kept = faults("kept")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")  # a user's own setting stands
    assert kept < faults("as it is") / 10


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def refuse(_):
        raise error

    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    assert allocator.keep_freed_memory() is False
