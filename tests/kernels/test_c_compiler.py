"""Compiling at the first use: where the result is kept, what is loaded, and what happens where it cannot be."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys

import pytest

from foveate.kernels import c_compiler as compiled

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, compiled.COMPILERS)) or not hasattr(os, "getuid"), reason="no C compiler"
)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@needs_compiler
def test_compiled_once_and_kept_for_the_user_alone(source, monkeypatch):
    assert compiled._load((source,), "ONE").answer() == 42
    folder = compiled.cache_folder()
    (kept,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    monkeypatch.setenv("PATH", "")  # no compiler is needed now
    assert isinstance(compiled._load((source,), "ONE"), ctypes.CDLL)


@needs_compiler
def test_another_source_is_another_file(source):
    compiled._load((source,), "ONE")
    source.write_text("int answer(void) { return 43; }\n")
    assert compiled._load((source,), "ONE").answer() == 43
    assert len(list(compiled.cache_folder().iterdir())) == 2


@needs_compiler
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_can_write_is_not_loaded(source, what):
    compiled._load((source,), "ONE")
    folder = compiled.cache_folder()
    (next(folder.iterdir()) if what == "file" else folder).chmod(0o777)
    with pytest.raises(OSError, match="not the user's alone"):
        compiled._load((source,), "ONE")


@needs_compiler
def test_a_link_is_not_followed(source, tmp_path):
    compiled._load((source,), "ONE")
    (kept,) = compiled.cache_folder().iterdir()
    kept.rename(tmp_path / "elsewhere.so")
    kept.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(OSError, match="not the user's alone"):
        compiled._load((source,), "ONE")


@needs_compiler
def test_a_compiler_that_knows_fewer_flags_serves_too(source, monkeypatch, tmp_path):
    real = next(filter(None, map(shutil.which, compiled.COMPILERS)))
    refused = "|".join([*compiled.GCC_FLAGS, "-march=native"])
    (tmp_path / "cc").write_text(
        f'#!/bin/sh\nfor a in "$@"; do case "$a" in {refused}) exit 1;; esac; done\nexec {real} "$@"\n'
    )
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert compiled._load((source,), "ONE").answer() == 42


@needs_compiler
def test_processes_that_start_together_compile_once(source, monkeypatch, tmp_path):
    """As the workers of a test run do; the compiler is slow enough for both to find nothing at first."""
    real = next(filter(None, map(shutil.which, compiled.COMPILERS)))
    (tmp_path / "cc").write_text(f'#!/bin/sh\necho once >> {tmp_path}/count\nsleep 0.5\nexec {real} "$@"\n')
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    code = (
        "import pathlib, sys; from foveate.kernels import c_compiler;"
        "print(c_compiler._load((pathlib.Path(sys.argv[1]),), 'ONE').answer(), 'torch' in sys.modules)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, source], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].split() for process in both] == [["42", "False"]] * 2
    assert (tmp_path / "count").read_text() == "once\n"


@pytest.mark.parametrize("obstacle", ["no compiler", "source that does not compile", "a file in the folder's place"])
def test_whatever_fails_is_one_log_line(source, obstacle, monkeypatch, tmp_path, caplog):
    if obstacle == "no compiler":
        monkeypatch.setenv("PATH", "")
    elif obstacle == "source that does not compile":
        source.write_text("this is not C\n")
    else:
        (tmp_path / "cache").write_text("")
    with caplog.at_level("INFO", logger="foveate"):
        for _ in range(2):
            library, reason = compiled.library((source,), obstacle.replace(" ", "_").replace("'", ""))
            assert library is None
            assert reason.startswith("the C kernels cannot be used: ")
    (record,) = caplog.records
    assert "so the plain definition is: " in record.message
    assert "\n" not in record.message
    folder = compiled.cache_folder()
    assert not folder.is_dir() or not list(folder.iterdir())


RUN = """
import torch
import foveate as fv
from foveate.attention.ulsam import ULSAM
from foveate.kernels.ulsam import cpu as ulsam_cpu
torch.manual_seed(0)
module, x = ULSAM(8).eval(), torch.ones(1, 8, 3, 3)
out = module(x)
fv.fuse(module)
assert torch.allclose(module(x), out)
print(float(out.sum()), bool(ulsam_cpu._functions.cache_info().currsize and not ulsam_cpu.why_not(torch.float32)))
"""


def test_without_the_kernel_the_plain_definition_serves(tmp_path, run_forked):
    changes = [{"PATH": ""}, {"FOVEATE_FUSED": "0"}]
    for result in run_forked(RUN, *[([], {"XDG_CACHE_HOME": str(tmp_path), **change}) for change in changes]):
        assert result.returncode == 0, result.stderr
        value, used = result.stdout.split()
        assert float(value) == pytest.approx(80, rel=1e-4)  # 72 ones, and for each channel a map that sums to 1
        assert used == "False"
        assert "Error" not in result.stderr
