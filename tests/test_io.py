"""Files are whole or not there, whatever happens to the writer."""

import csv
import io
import json
import os
import random
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from foveate import io as files
from foveate.errors import FoveateError
from foveate.progress import ProgressBar, track


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def dead_pid() -> int:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def temporary(name: str, pid: int, place: str | None = None) -> str:
    return f".{name}.{place or files._place_code()}-{pid}-0.tmp"


def test_folders_are_made_and_old_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    assert files.write_atomically(path, "grün\n") == path
    assert path.read_bytes() == "grün\n".encode()
    files.write_atomically(path, b"new")
    files.write_files({path: lambda place: place.write_text("newest"), path.with_name("d"): b"beside"})
    assert content(tmp_path) == {"a/b/c.txt": b"newest", "a/b/d": b"beside"}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_bytes_of_a_name_that_is_not_utf8_are_kept(tmp_path):
    files.write_atomically(tmp_path / "x", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "x").read_bytes() == b"caf\xe9"


@pytest.mark.parametrize("fails", [OSError(28, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()])
def test_one_that_fails_leaves_all_the_old_files(tmp_path, fails):
    old = {tmp_path / "one": b"1", tmp_path / "two": b"2", tmp_path / "sums": b"3"}
    files.write_files(old)

    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise fails

    with pytest.raises(FoveateError if isinstance(fails, OSError) else type(fails)) as caught:
        files.write_files({tmp_path / "one": b"new", tmp_path / "two": half}, remove=[tmp_path / "sums"])
    assert content(tmp_path) == {"one": b"1", "two": b"2", "sums": b"3"}
    if isinstance(fails, OSError):
        assert str(caught.value) == (
            f"cannot write {tmp_path / 'two'}: No space left on device; what was there is untouched; "
            "free some space or choose another place"
        )


def test_a_rename_that_fails_says_what_is_new(tmp_path, monkeypatch):
    replace = Path.replace

    def fails(self, target):
        if Path(target).name == "two":
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(FoveateError, match="cannot write .*two: Input/output error; only one is new; choose another"):
        files.write_files({tmp_path / "one": b"1", tmp_path / "two": b"2", tmp_path / "three": b"3"})
    assert content(tmp_path) == {"one": b"1"}


def test_a_full_disk(tmp_path):
    """A real one: the process may write no file larger than 1,000 bytes."""
    path = tmp_path / "state"
    files.write_atomically(path, b"old")
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FoveateError, match="cannot write .*state: File too large; what was there is untouched"):
            files.write_atomically(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert content(tmp_path) == {"state": b"old"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", "folder' is a folder: name a file in it"),
        ("file/below", "cannot make the folder .*file: it is a file; choose another place"),
        ("file/below/it", "cannot make the folder .*file/below: a part of it is a file; choose another place"),
    ],
)
def test_a_place_where_no_file_can_be(tmp_path, path, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FoveateError, match=message):
        files.write_atomically(tmp_path / path, b"x")
    assert content(tmp_path) == {"file": b"mine"}


def test_no_permission_is_said(tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refused)  # not by mode bits: root may do everything
    with pytest.raises(FoveateError) as caught:
        files.write_csv(tmp_path / "table.csv", [{"a": 1}])
    said = (
        f"cannot write {tmp_path / 'table.csv'}: Permission denied; what was there is untouched; choose another place"
    )
    assert str(caught.value) == said


def test_links_pipes_and_long_names(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file")
    files.write_atomically(link, b"1")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"1"
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    files.write_atomically(pipe, b"through")
    reader.join()
    assert found == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    files.write_atomically(tmp_path / ("ä" * 127), b"long")
    assert (tmp_path / ("ä" * 127)).read_bytes() == b"long"


def test_what_is_written_is_synchronised_before_it_is_renamed(tmp_path, monkeypatch):
    events, sync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(Path(f"/proc/self/fd/{fd}").readlink().name), sync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("rename"), replace(self, to))[1])
    files.write_atomically(tmp_path / "x", b"1")
    assert len(events) == 3
    assert events[0].startswith(".x.")
    assert events[1:] == ["rename", tmp_path.name]


def test_stale_files_of_dead_writers_go_and_nothing_else(tmp_path):
    old = time.time() - 7200
    kept = [
        temporary("own", os.getpid()), temporary("alive", os.getppid()), temporary("elsewhere", 1, "0" * 8),
        ".editor.tmp", ".x.123.tmp", "notes.tmp", f"x.{files._place_code()}-1-0.tmp",
    ]  # fmt: skip
    stale = [temporary("dead", dead_pid()), temporary("elsewhere.long.ago", 1, "0" * 8)]
    for name in kept + stale:
        (tmp_path / name).write_bytes(b"half")
    for name in (stale[1], ".editor.tmp", temporary("own", os.getpid())):
        os.utime(tmp_path / name, (old, old))
    files.write_atomically(tmp_path / "new", b"1")
    assert set(content(tmp_path)) == {"new", *kept}


WRITER = """
import sys, itertools
from pathlib import Path
from foveate.io import write_files
one, two = (Path(sys.argv[1]) / name for name in ("one", "two"))
print("ready", flush=True)
for n in itertools.count():
    write_files({one: bytes([n % 251]) * 300_000, two: bytes([n % 251]) * 300_000})
"""


def test_killed_while_writing_both_files_are_whole(tmp_path):
    random.seed(0)
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(0.05 + random.random() / 10)
        writer.kill()
        writer.communicate()
        files.remove_stale(tmp_path)
        found = content(tmp_path)
        assert set(found) <= {"one", "two"}
        assert all(len(data) == 300_000 and len(set(data)) == 1 for data in found.values())
    assert set(found) == {"one", "two"}


def test_the_place_says_which_processes_can_be_asked():
    assert socket.gethostname() in (files.process_place() or "")


def test_csv(tmp_path):
    rows = [{"a": 1 / 3, "b": None, "c": 'x, "y"\nz'}, {"a": 2, "b": True, "c": ""}]
    text = files.csv_text(rows, digits=3)
    assert text == 'a,b,c\n0.333,,"x, ""y""\nz"\n2,True,\n'
    assert files.csv_text(rows).startswith("a,b,c\n0.3333333333333333,")
    assert files.csv_text([], ["a", "b"]) == "a,b\n"
    assert files.write_csv(tmp_path / "new" / "t.csv", rows, digits=3).read_bytes() == text.encode()
    assert next(csv.DictReader(io.StringIO(text)))["c"] == rows[0]["c"]


def test_markdown_table():
    rows = [("a|b", "+1.5", ""), ("two\nlines", "12", "x")]
    assert files.markdown_table(("name", "number", "text"), rows) == [
        "| name | number | text |", "| --- | --: | --- |", "| a\\|b | +1.5 |  |", "| two lines | 12 | x |",
    ]  # fmt: skip
    assert files.markdown_table(("a", "b"), [("1", "2")], right=(0,))[1] == "| --: | --- |"
    assert files.markdown_table(("a", "b"), [])[0] == "| a | b |"


def test_state_digest_sees_every_part():
    x = torch.arange(6.0)
    same = files.state_digest([("w", x)])
    assert same == files.state_digest({"w": x.clone().requires_grad_()}.items())
    assert same == files.state_digest([("w", torch.stack([x, x], 1)[:, 0])])  # another memory layout
    others = [
        [("v", x)], [("w", x.reshape(2, 3))], [("w", x.double())], [("w", -x)], [("w", x), ("w", x)], [],
        [("w", x.view(torch.int32))],
    ]  # fmt: skip
    assert len({same, files.state_digest([("w", x)], "header"), *map(files.state_digest, others)}) == len(others) + 2
    bf16 = x.bfloat16()
    assert files.state_digest([("w", bf16), ("n", torch.tensor(3))]) != same


def test_a_bar_is_silent_unless_it_is_shown(capsys, caplog):
    with caplog.at_level("INFO", "foveate"), ProgressBar(False) as bar:
        task = bar.task("working", 3)
        bar.advance(task, 1)
        bar.line("[red]a line")
        assert list(bar.track([[1, 2], [3]], "parts", 3, len)) == [[1, 2], [3]]
        bar.end(task)
        assert bar.seconds >= 0
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == ["[red]a line"]
    with ProgressBar(True) as bar:
        bar.line("[red]a line")
        assert list(bar.track("abc", "[/red] hostile", 3)) == list("abc")
    out, err = capsys.readouterr()
    assert out == ""
    assert "[red]a line" in err
    assert list(track(range(3), "steps", show=False)) == [0, 1, 2]


def test_importing_costs_neither_torch_nor_rich():
    code = "import sys, foveate.io, foveate.progress; print({'torch', 'rich', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# ---- text that a reader could take for something else


def test_no_cell_is_a_formula():
    cells = {"a": "=1+1", "b": "@x", "c": "-x", "d": "-0.5", "e": -0.5, "f": "+1e-3", "g": "a=b", "h": "\tx"}
    (row,) = csv.DictReader(io.StringIO(files.csv_text([cells])))
    assert list(row.values()) == ["'=1+1", "'@x", "'-x", "-0.5", "-0.5", "+1e-3", "a=b", "'\tx"]


def test_markdown_shows_text_literally():
    assert files.markdown_text("a|b <i> [x](y) `c` *d*\ne") == r"a\|b \<i\> \[x\](y) \`c\` \*d\* e"
    assert (
        files.markdown_table(["x"], [[files.markdown_text("a|b")]])[-1]
        == files.markdown_table(["x"], [["a|b"]])[-1]
        == r"| a\|b |"
    )


def test_json_of_a_name_that_is_not_utf_8():
    text = files.json_text({"caf\udce9": "n\u00e9"})
    assert text.encode("utf-8")
    assert "n\u00e9" in text
    assert json.loads(text) == {"caf\udce9": "n\u00e9"}
