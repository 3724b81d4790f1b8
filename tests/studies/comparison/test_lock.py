"""One process holds a claim; a dead one's claim is taken over by one other."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from foveate.errors import FoveateError
from foveate.studies.comparison import lock as claims
from foveate.studies.comparison.lock import RunLocks


def test_a_claim_is_held_until_it_is_released(tmp_path):
    with RunLocks().take(tmp_path / "new" / "run") as claim:
        assert claim.number == 0
        assert RunLocks().take(tmp_path / "new" / "run") is None
        assert RunLocks().holder(tmp_path / "new" / "run").startswith(f"process {os.getpid()} on ")
    assert RunLocks().holder(tmp_path / "new" / "run") is None
    assert RunLocks().take(tmp_path / "new" / "run").number == 1


def test_an_error_releases_it(tmp_path):
    with pytest.raises(RuntimeError), RunLocks().take(tmp_path):
        raise RuntimeError
    assert RunLocks().take(tmp_path).number == 1


def test_the_claim_of_a_dead_process_is_free_at_once(tmp_path):
    RunLocks().take(tmp_path)  # by this process, which lives
    assert RunLocks().take(tmp_path) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = json.loads((tmp_path / "claim.0").read_text())
    (tmp_path / "claim.0").write_text(json.dumps({**owner, "pid": ended.pid}))
    assert RunLocks().take(tmp_path).number == 1


def test_a_process_number_that_was_used_again_is_not_the_owner(tmp_path):
    RunLocks().take(tmp_path)
    owner = json.loads((tmp_path / "claim.0").read_text())
    assert RunLocks().take(tmp_path) is None
    (tmp_path / "claim.0").write_text(json.dumps({**owner, "started": "1"}))
    assert RunLocks().take(tmp_path).number == 1


@pytest.mark.parametrize("content", ['{"host": "far", "pid": 1, "started": "5", "place": "far"}', "", "[1]"])
def test_a_claim_from_elsewhere_is_free_when_it_stands_still(tmp_path, monkeypatch, content):
    now = [1000.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    path = tmp_path / "claim.0"
    path.write_text(content)
    os.utime(path, ns=(1, 1))  # however old it says it is: clocks are not compared
    watcher = RunLocks()
    assert watcher.take(tmp_path) is None
    now[0] += claims.STALE
    assert watcher.take(tmp_path) is None
    os.utime(path, ns=(2, 2))  # it lives
    now[0] += 1
    assert watcher.take(tmp_path) is None
    now[0] += claims.STALE + 1
    assert RunLocks().take(tmp_path) is None  # this one has not watched
    assert watcher.take(tmp_path).number == 1


def test_the_owner_renews_its_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    renewed = threading.Event()
    monkeypatch.setattr(claims.os, "utime", lambda path: renewed.set())
    with RunLocks().take(tmp_path):
        assert renewed.wait(10)


def test_of_many_one_takes_over(tmp_path):
    (tmp_path / "claim.0").write_text('{"released": true}')
    start, taken = threading.Barrier(8), []

    def take():
        start.wait()
        taken.append(RunLocks().take(tmp_path))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [claim.number for claim in taken if claim] == [1]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FoveateError, match="cannot write into"):
        RunLocks().take(tmp_path / "file")


def test_other_files_are_no_claims(tmp_path):
    for name in ("claim.tmp", "claim.-1", ".claim.0.released"):
        Path(tmp_path / name).touch()
    assert RunLocks().take(tmp_path).number == 0
