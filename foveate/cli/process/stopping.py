"""Ctrl-C and SIGTERM: what was kept, and how to go on."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

__all__ = [
    "Terminated",
    "after_compare",
    "after_demo",
    "after_search",
    "after_train",
    "kept",
    "nothing",
    "stop_on_sigterm",
    "stopped",
    "when_stopped",
]

_advice: list[Callable[[], str]] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends; it ends a command as Ctrl-C does."""


def stop_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: with what was kept, and with the processes that it started.

    Not under torchrun, which ends processes that may hang in a call that no Python handler interrupts.
    """
    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def when_stopped(advice: Callable[[], str]) -> None:
    """Say this when the command that is running is stopped: what is kept, and how to go on."""
    _advice[:] = [advice]


def stopped(error: KeyboardInterrupt) -> tuple[str, int]:
    """The line for a command that was stopped, and its exit code: 130 after Ctrl-C, 143 after SIGTERM."""
    return f"foveate: stopped; {_advice[0]()}", 143 if isinstance(error, Terminated) else 130


def nothing() -> str:
    """What a command keeps that writes at its end or not at all."""
    return "nothing was written; the same command starts again"


def after_train(output: Path) -> str:
    """What a training run keeps in its folder."""
    if not (output / "training.safetensors").exists():
        return "no checkpoint was written yet, so nothing is kept; the same command starts again"
    try:
        epochs = len((output / "summary.csv").read_text("utf-8").splitlines()) - 1
    except OSError:
        epochs = 0
    done = f"{epochs} epoch{'s' * (epochs != 1)} and the last checkpoint are" if epochs else "the last checkpoint is"
    return f"{done} kept in {output}; the same command with --resume goes on from there"


def after_compare(output: Path, again: str = "the same command") -> str:
    """What a comparison keeps in its folder."""
    runs = len(list(output.glob("runs/*/result.json")))
    begun = len(list(output.glob("runs/*/attempt.*/training.safetensors")))
    if not begun and not runs:
        return f"no run had a checkpoint yet, so nothing is kept; {again} starts again"
    return f"{runs} finished run{'s' * (runs != 1)} and the last checkpoints are kept in {output}; {again} goes on"


def after_search(output: Path) -> str:
    """What a search keeps in its folder."""
    trials = {file.parent for file in output.glob("trials/*/result.*.json")}
    begun = trials | {file.parents[1] for file in output.glob("trials/*/attempt.*/training.safetensors")}
    if not begun:
        return "no plan had a checkpoint yet, so nothing is kept; the same command starts again"
    number = f"{len(trials)} trial{'s' * (len(trials) != 1)}"
    return f"{number} and the last checkpoints are kept in {output}; the same command goes on"


def kept(output: Path) -> str:
    """What a command keeps that writes file after file."""
    return f"what was finished is in {output}; the same command makes all of it again"


def after_demo(output: Path | None, *, quick: bool) -> str:
    """What the demo keeps; without a folder of the user's, in the newest of its own."""
    own = sorted(Path("runs").glob("demo*"), key=lambda folder: folder.stat().st_mtime)
    folder = output or (own[-1] if own else Path("runs/demo"))
    return after_compare(folder, f"foveate demo{' --quick' * quick} --output {shlex.quote(str(folder))}")
