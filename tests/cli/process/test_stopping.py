"""Ctrl-C and SIGTERM: one line that says what is kept and how to go on, and the exit code of the signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import foveate as fv
from foveate.cli import main
from foveate.cli.process import helpers, stopping

SMALL = ["--model", "test_resnet", "--epochs", "2", "--image-size", "32", "--batch-size", "8"]


def stopped(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("verb", "command", "said"),
    [
        ("fit", ["train", "DATA", *SMALL, "--output", "OUT"], "no checkpoint was written yet, so nothing is kept"),
        ("compare", ["compare", "DATA", *SMALL, "--plans", "none", "--output", "OUT"], "no run had a checkpoint yet"),
        ("demo", ["demo", "--quick", "--output", "OUT"], "foveate demo --quick --output OUT starts again"),
        ("sites", ["sites", "test_resnet"], "nothing was written; the same command starts again"),
        ("cost", ["cost", "test_resnet"], "nothing was written"),
        ("latency", ["latency", "test_resnet"], "nothing was written"),
        ("audit", ["audit", "test_resnet", "DATA"], "nothing was written"),
        ("explain", ["explain", "test_resnet", "DATA"], "nothing was written"),
        ("reproduce", ["reproduce"], "nothing was written"),
        ("check_data", ["data", "check", "DATA"], "nothing was written"),
        ("read_comparison", ["results", "OUT"], "nothing was written"),
    ],
)
def test_every_command_says_what_is_kept(verb, command, said, folder, tmp_path, capsys, monkeypatch):
    names = {"DATA": str(folder), "OUT": str(tmp_path / "out")}
    command = [names.get(word, word) for word in command]
    if verb in ("audit", "latency"):
        monkeypatch.setattr(fv, "load", lambda *_: None)
    for error, code in ((KeyboardInterrupt, 130), (stopping.Terminated, 143)):

        def stops(*_: object, error: type[BaseException] = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(fv, verb, stops)
        found, line = stopped(capsys, *command)
        assert found == code
        assert line.startswith("foveate: stopped; ")
        assert said.replace("OUT", names["OUT"]) in line


def test_what_a_run_and_a_comparison_keep(tmp_path):
    (tmp_path / "training.safetensors").touch()
    assert stopping.after_train(tmp_path).startswith("the last checkpoint is kept in ")
    (tmp_path / "summary.csv").write_text("epoch\n0\n1\n")
    assert stopping.after_train(tmp_path) == (
        f"2 epochs and the last checkpoint are kept in {tmp_path}; the same command with --resume goes on from there"
    )
    attempt = tmp_path / "runs" / "se" / "attempt.0"
    attempt.mkdir(parents=True)
    (attempt / "training.safetensors").touch()
    (attempt.parent / "result.json").touch()
    assert stopping.after_compare(tmp_path) == (
        f"1 finished run and the last checkpoints are kept in {tmp_path}; the same command goes on"
    )


@pytest.mark.slow(
    reason="it starts a process for each signal; the messages are tested above, the codes in tests/cli",
    guards=("foveate/cli/process/", "foveate/cli/train.py", "foveate/training/fit.py"),
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_signal_before_the_first_epoch(number, code, folder, tmp_path):
    """And the same command starts again: the folder that was made does not count as a run."""
    command = [sys.executable, "-m", "foveate", "train", str(folder), *SMALL, "--output", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    # A process that was started in the background of a script ignores SIGINT, and so would its children.
    awake = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=awake)
    running.stderr.readline()  # what the data is; then torch is imported and the run prepared
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert err.splitlines()[-1].startswith(
        "foveate: stopped; no checkpoint was written yet, so nothing is kept; the same"
    )
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "training.safetensors").exists()


def sleeps(_verb, request):
    time.sleep(request["seconds"])


def test_helpers_of_a_command_end_with_the_process_that_started_them(monkeypatch):
    monkeypatch.setattr(helpers, "_help", sleeps)
    before, started = set(multiprocessing.active_children()), []

    def is_stopped():
        with helpers.helpers(2, "compare", {"seconds": 600}):
            started.extend(set(multiprocessing.active_children()) - before)
            assert [process.is_alive() for process in started] == [True, True]
            raise stopping.Terminated

    with pytest.raises(stopping.Terminated):
        is_stopped()
    assert not any(process.is_alive() for process in started)


def test_the_command_that_goes_on_with_a_demo_can_be_pasted(tmp_path):
    said = stopping.after_demo(tmp_path / "my demo", quick=True)
    assert f"foveate demo --quick --output '{tmp_path}/my demo' starts again" in said


def test_what_a_search_keeps(tmp_path):
    assert "nothing is kept" in stopping.after_search(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "trials" / name / "attempt.0").mkdir(parents=True)
        (tmp_path / "trials" / name / "attempt.0" / "training.safetensors").touch()
    assert stopping.after_search(tmp_path).startswith("0 trials and the last checkpoints are kept")
    for epochs in (1, 3):
        (tmp_path / "trials" / "a" / f"result.{epochs}.json").touch()
    assert stopping.after_search(tmp_path).startswith("1 trial and the last checkpoints are kept")
