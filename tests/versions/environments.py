"""Sets of versions, and an environment for each."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETS = Path(__file__).with_name("sets.toml")
DAYS = 30  # after which an environment with "the newest" of something is built anew
SCHEME = 1  # raise when environments are to be built in another way


@dataclass(frozen=True)
class VersionSet:
    """One set, as sets.toml has it."""

    name: str
    about: str
    python: list[str]
    packages: list[str] = field(default_factory=list)
    pinned: str = ""
    without: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def requirements(self) -> list[str]:
        """What the installer is asked for: the project's own requirements, where ``packages`` has no other."""
        named = {name_of(text) for text in self.packages}
        own = [text for text in requirements(self.without) if name_of(text) not in named]
        return [*(map(lowest, own) if self.pinned == "lowest" else own), *self.packages]

    def constraints(self) -> str:
        """The text of the constraints file, empty without one."""
        return (ROOT / "constraints.txt").read_text(encoding="utf-8") if self.pinned == "constraints" else ""


def sets() -> dict[str, VersionSet]:
    """The sets by name."""
    return {s["name"]: VersionSet(**s) for s in tomllib.loads(SETS.read_text(encoding="utf-8"))["set"]}


def name_of(requirement: str) -> str:
    """'Hugging_Face>=1' -> 'hugging-face'."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def requirements(without: Iterable[str] = ()) -> list[str]:
    """What pyproject.toml requires for the tests, with the project's own extras written out, but for some."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    waiting = ["test"]
    while waiting:
        for text in project["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(rf"{project['name']}\[([\w,\s-]+)\]", text)
            if own:
                waiting += [name.strip() for name in own[1].split(",") if name.strip() not in without]
            else:
                found.append(text)
    return found


def lowest(requirement: str) -> str:
    """'torch>=2.9' -> 'torch==2.9'. A requirement without a lower bound is an error: no run could have seen it."""
    found = re.fullmatch(r"([\w.\[\]-]+)\s*>=\s*([\w.]+)(\s*,.*)?", requirement)
    if not found:
        raise SystemExit(f"{requirement!r} in pyproject.toml has no lower bound of the form NAME>=VERSION")
    return f"{found[1]}=={found[2]}"


# ---- environments ----


def interpreter(minors: Iterable[str]) -> tuple[str, str] | None:
    """The first Python of these minor versions that the machine has: its path and its full version."""
    for minor in minors:
        pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
        candidates = [sys._base_executable, shutil.which(f"python{minor}")]
        candidates += sorted(map(str, pyenv.glob(f"{minor}.*/bin/python")), reverse=True)
        if uv := find_uv():
            asked = [uv, "python", "find", "--no-python-downloads", "--system", minor]
            candidates.append(subprocess.run(asked, capture_output=True, text=True).stdout.strip())
        for candidate in filter(None, candidates):
            code = "import platform, sys; print(sys.executable, platform.python_version())"
            with contextlib.suppress(OSError):
                said = subprocess.run([candidate, "-I", "-c", code], capture_output=True, text=True).stdout.split()
                if len(said) == 2 and said[1].startswith(minor + "."):
                    return said[0], said[1]
    return None


def find_uv() -> str | None:
    """The path of uv, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


def environments() -> Path:
    """The folder that keeps the environments."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FOVEATE_ENVIRONMENTS") or cache / "foveate" / "environments").absolute()


@contextlib.contextmanager
def environment(wanted: VersionSet, python: tuple[str, str], log: Path, fresh: bool) -> Iterator[Path]:
    """An environment's Python, while nobody else uses the environment.

    It is complete only once `asked.json` is in it: one whose installation broke off is built anew.
    """
    asked = {
        "scheme": SCHEME,
        "python": python,
        "requirements": wanted.requirements(),
        "constraints": wanted.constraints(),
    }
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    folder = environments() / f"{wanted.name}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "asked.json"
        old = done.exists() and not wanted.pinned and time.time() - done.stat().st_mtime > DAYS * 86400
        if fresh or old or not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder, python[0], asked, log)
            done.write_text(json.dumps(asked, indent=1), encoding="utf-8")
        # Its commands and its metadata come from this clone, whichever used the environment before.
        install(folder, ["--no-deps", "--editable", str(ROOT)], log)
        yield folder / "bin" / "python"


def build(folder: Path, python: str, asked: dict[str, object], log: Path) -> None:
    """Make the environment and install what was asked for."""
    call([python, "-m", "venv", str(folder)], log)
    lists = {"requirements": "\n".join(map(str, asked["requirements"])), "constraints": str(asked["constraints"])}
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    what = ["--requirement", str(folder / "requirements.txt"), "--constraint", str(folder / "constraints.txt")]
    install(folder, what, log)


def install(folder: Path, what: list[str], log: Path) -> None:
    """Call uv or pip, three times at most: a registry may be busy."""
    python = folder / "bin" / "python"
    uv = find_uv()
    installer = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    for remaining in (2, 1, 0):
        try:
            call([*installer, "--quiet", *what], log)
            break
        except subprocess.CalledProcessError:
            if not remaining:
                raise


def call(command: list[str], log: Path) -> None:
    """Run a command into the log."""
    with log.open("a", encoding="utf-8") as out:
        print("$", *command, file=out, flush=True)
        subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=True)
