"""Runs the tests in new environments, one for each set of versions in sets.toml: `make test-versions`.

    python tests/versions                          every set, the whole test command
    python tests/versions --set lowest --paths tests/surgery tests/kernels
    python tests/versions --write                  ... and docs/reports/versions.csv, with the tables made from it

Needs Python 3.11 and nothing else; installs with uv where there is one, with pip otherwise. Environments are kept in
$FOVEATE_ENVIRONMENTS, or the user's cache folder, under a hash of what was asked for. One set's failure does not stop
the others; the exit status is 0 only if all passed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from environments import ROOT, VersionSet, environment, interpreter, sets
from results import Row, read, save, table, write

SHOWN = ("torch", "torchvision", "timm", "numpy")


def run(wanted: VersionSet, paths: list[str], logs: Path, minutes: float, fresh: bool, workers: int) -> Row:
    """Run the tests in one set."""
    row = Row(wanted.name, date=dt.datetime.now(dt.UTC).date().isoformat())
    python = interpreter(wanted.python)
    if python is None:
        row.state = f"not run: no Python {' or '.join(wanted.python)} here"
        return row
    row.python = python[1]
    log, report = (logs / f"{wanted.name}.{end}" for end in ("log", "xml"))
    for file in (log, report):
        file.unlink(missing_ok=True)
    try:
        with environment(wanted, python, log, fresh) as executable:
            for name, version in versions(executable).items():
                setattr(row, name, version)
            started = time.monotonic()
            command = [str(executable), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
            status = tests([*command, *(["-n", str(workers)] if workers else []), *paths], log, minutes)
            row.minutes = round((time.monotonic() - started) / 60, 1)
            read(report, row)
            if status is None:
                row.state = f"stopped after {minutes:g} minutes"
            elif status == 0 and row.passed:
                row.state = "passed"
            elif status == 1 and row.failed:
                row.state = "failed"
            else:
                row.state = f"pytest ended with {status}: see {log.name}"
    except subprocess.CalledProcessError as error:
        row.state = f"not installed: {Path(error.cmd[0]).name} ended with {error.returncode}, see {log.name}"
    return row


def versions(executable: Path) -> dict[str, str]:
    """The installed versions that the table shows."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {SHOWN}}}))"
    return json.loads(subprocess.run([str(executable), "-I", "-c", code], capture_output=True, check=True).stdout)


def tests(command: list[str], log: Path, minutes: float) -> int | None:
    """Run pytest with one thread a worker; its exit status, None when it was stopped."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    variables = {**os.environ, **one, "PYTHONPATH": str(ROOT)}
    with log.open("a", encoding="utf-8") as out:
        print("$", *command, file=out, flush=True)
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(timeout=minutes * 60)
        except subprocess.TimeoutExpired:
            return None
        finally:  # the workers, too, and also when this script is interrupted
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> int:
    """Read the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", choices=list(sets()), help="a set; all without it")
    parser.add_argument("--paths", nargs="+", default=[], help="tests to run; all without it")
    parser.add_argument("--fresh", action="store_true", help="build the environments anew")
    parser.add_argument("--minutes", type=float, default=60, help="the longest that one set's tests may take")
    parser.add_argument("--workers", type=int, default=2, help="pytest processes; 0: none beside the first")
    parser.add_argument("--logs", type=Path, default=ROOT / "runs" / "versions", help="folder for the log of each set")
    parser.add_argument("--write", action="store_true", help="record the result in docs/reports, with the tables")
    parser.add_argument(
        "--tables", action="store_true", help="run nothing: make the tables from docs/reports/versions.csv"
    )
    options = parser.parse_args()
    if options.write and options.paths:
        parser.error("--write records runs of all tests: leave --paths out")
    if options.tables:
        write([])
        return 0
    options.logs.mkdir(parents=True, exist_ok=True)
    logs = options.logs.absolute()
    rows = []
    for name in options.set or sets():
        print(f"{name}: {sets()[name].about}", flush=True)
        row = run(
            sets()[name], options.paths or sets()[name].paths, logs, options.minutes, options.fresh, options.workers
        )
        rows.append(row)
        print(f"{name}: {row.state}, {row.minutes:g} minutes\n", flush=True)
        save(rows, logs / "results.csv")
        if options.write:
            write([row])
    print(table(rows, ("set", "python", *SHOWN, "passed", "failed", "skipped", "minutes", "state")))
    for row in rows:
        print(f"skipped in {row.set}: {row.reasons or 'none'}")
    print(f"logs: {os.path.relpath(logs)}")
    return 0 if all(row.state == "passed" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
