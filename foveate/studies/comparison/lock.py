"""Locks on runs, for several processes or machines that share a folder and nothing else.

The rule. The claims on a folder are the files claim.0, claim.1, ... in it, and the highest number holds. A process
claims a folder by creating the next number with O_CREAT | O_EXCL, which succeeds for one of them (on a local disk, and
on NFS from version 3 on), and only if the highest number is free:

* its owner wrote into it that it is released; or
* its owner ran on this machine (same host name, same boot, same process namespace) and that process is dead; or
* its owner ran elsewhere, and the file's time, which the owner renews every 20 seconds, has not changed while this
  process watched it for 180 seconds. No clock is compared with another's.

A number is never deleted and never given twice, so two processes that both find the same claim stale cannot both take
it over, and none can take away a claim that is newer than the one it judged. A process on this machine that lives but
hangs keeps its claim: end it. A machine that slept for longer than 180 seconds and wakes up may find that its work was
taken over; it is for the caller to give each number a place of its own to write to.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from foveate.errors import FoveateError
from foveate.io import JsonObject, process_place, write_atomically

__all__ = ["BEAT", "STALE", "RunLock", "RunLocks"]

BEAT = 20.0  # seconds between two renewals
STALE = 180.0  # seconds without a renewal after which a claim from elsewhere is free


class RunLock:
    """A folder that this process works on, until the end of the ``with``.

    Args:
        path: the claim's file, just created.
        number: its number.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(FoveateError):  # the process's end releases it, too
            write_atomically(self.path, json.dumps({**_owner(), "released": True}))

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                os.utime(self.path)
            except OSError:
                continue  # a network folder may come back


class RunLocks:
    """Takes locks, and remembers since when those of others stand still."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float]] = {}

    def take(self, folder: Path) -> RunLock | None:
        """RunLock a folder, which is made where it is missing; None while another process works on it.

        Raises:
            FoveateError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            last = max((number for path in folder.glob("claim.*") if (number := _number(path)) is not None), default=-1)
            if last >= 0 and not self._is_free(folder / f"claim.{last}"):
                return None
            path = folder / f"claim.{last + 1}"
            if not _create(path):
                return None
        except OSError as error:
            raise FoveateError(f"cannot write into {folder}: {error.strerror or error}") from error
        return RunLock(path, last + 1)

    def holder(self, folder: Path) -> str | None:
        """Who works on a folder, in words; None when nobody does."""
        paths = [path for path in folder.glob("claim.*") if _number(path) is not None]
        last = max(paths, key=lambda path: _number(path) or 0, default=None)
        if last is None or self._is_free(last):
            return None
        owner = _read(last)
        return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"

    def _is_free(self, path: Path) -> bool:
        owner = _read(path)
        if owner.get("released"):
            return True
        if owner.get("place") is not None and owner["place"] == process_place():
            return not _is_alive(owner["pid"], owner["started"])
        try:
            beat = path.stat().st_mtime_ns
        except OSError:
            return False
        now = time.monotonic()
        seen, since = self._seen.get(path, (None, now))
        if seen != beat:
            self._seen[path] = (beat, now)
            return False
        return now - since > STALE


def _create(path: Path) -> bool:
    """Make a claim's file; False where another process was quicker."""
    try:
        file = path.open("x")
    except FileExistsError:
        return False
    with file:
        file.write(json.dumps(_owner()))
        file.flush()
        os.fsync(file.fileno())
    return True


def _number(path: Path) -> int | None:
    digits = path.name.removeprefix("claim.")
    return int(digits) if digits.isdigit() else None


def _read(path: Path) -> JsonObject:
    """What an owner wrote; nothing while it is being written, or after a torn write."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _owner() -> JsonObject:
    pid = os.getpid()
    return {"host": platform.node(), "pid": pid, "started": _stat(pid)[1], "place": process_place(), "released": False}


def _stat(pid: int) -> tuple[str, str]:
    """State and start time of a process, as Linux gives them, so that a number used again is noticed; else empty."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    state, now_started = _stat(pid)
    return state not in ("Z", "X") and now_started == started
