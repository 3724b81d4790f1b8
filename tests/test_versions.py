"""The script that runs the tests over sets of versions: what it asks for, what it keeps, what it tells of failures."""

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

pytest.importorskip("fcntl", reason="the script is for systems that have POSIX locks")
ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "versions"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script's three files as modules; its environments are in a folder of the test's own."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("environments", "results"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("FOVEATE_ENVIRONMENTS", str(tmp_path / "environments"))
    spec = importlib.util.spec_from_file_location("versions_main", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environments(script):
    return importlib.import_module("environments")


@pytest.fixture
def results(script):
    return importlib.import_module("results")


def test_every_requirement_has_a_lower_bound_that_a_set_runs(environments):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = environments.sets()["lowest"].requirements()
    web = environments.sets()["lowest-web"].requirements()  # where Gradio is, and what it requires
    asked += [text for text in web if text.startswith(("gradio", "jinja2"))]
    extras = (project["optional-dependencies"][name] for name in ("test", "demo", "heic", "web"))
    for text in (*project["dependencies"], *(text for extra in extras for text in extra)):
        name, _, version = re.split(r"(>=)", text) if ">=" in text else (text, "", "")
        assert text.startswith("foveate[") or f"{name}=={version}" in asked, text
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", text) for text in asked)
    assert not any(text.startswith("huggingface-hub==0") for text in environments.sets()["lowest-web"].requirements())
    assert environments.lowest("torch >= 2.9, <4") == "torch==2.9"
    for unbounded in ("torch", "torch<3", "torch>2", "torch~=2.9"):
        with pytest.raises(SystemExit, match="no lower bound"):
            environments.lowest(unbounded)


def test_ci_has_the_python_of_every_set_that_it_runs(environments):
    ran = re.findall(r"--set (\S+)", (ROOT / ".ci" / "run").read_text())
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (setup,) = [step for step in workflow["jobs"]["test"]["steps"] if "setup-python" in step.get("uses", "")]
    *also, default = setup["with"]["python-version"].split("\n")[:-1]
    assert ran
    assert default == "${{ matrix.python }}"
    assert all(set(environments.sets()[name].python) & set(also) for name in ran)


def test_constraints_hold_every_requirement_not_below_its_bound(environments):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(re.sub("_", "-", line.lower()).split("==") for line in lines if not line.startswith("#"))

    def numbers(version):
        return [int(part) for part in re.findall(r"\d+", version)]

    for text in environments.requirements():
        name, version = environments.lowest(text).split("==")
        assert numbers(pinned[name.lower()]) >= numbers(version), text


def test_the_table_is_that_of_the_recorded_results(results):
    rows = results.load(results.RESULTS)
    assert [row.set for row in rows] == list(results.sets())
    text = results.PAGE.read_text("utf-8")
    assert results.page(text, rows, results.COLUMNS) == text, "python tests/versions --tables"
    assert all(row.failed == 0 and row.passed > 0 for row in rows if row.state == "passed")


def test_an_environment_is_used_again_only_if_it_is_whole_and_was_asked_for(environments, monkeypatch, tmp_path):
    built = []

    def build(folder, python, asked, log):
        built.append(folder)
        folder.mkdir(parents=True)
        if len(built) == 1:
            raise subprocess.CalledProcessError(1, ["pip"])

    monkeypatch.setattr(environments, "build", build)
    monkeypatch.setattr(environments, "install", lambda *_: None)
    wanted = environments.VersionSet("a", "", ["3.11"], ["torch==2.11.0"])

    def use(wanted, fresh=False):
        with environments.environment(wanted, ("python", "3.11.7"), tmp_path / "log", fresh) as python:
            return python

    with pytest.raises(subprocess.CalledProcessError):
        use(wanted)
    assert use(wanted) == use(wanted)
    assert len(built) == 2  # the broken one was built anew, the whole one was not
    assert use(environments.VersionSet("a", "", ["3.11"], ["torch==2.14.1"])) != use(wanted)
    assert len(built) == 3
    use(wanted, fresh=True)
    assert len(built) == 4
    monkeypatch.setattr(environments, "DAYS", -1)
    use(wanted)
    assert len(built) == 5
    use(environments.VersionSet("b", "", ["3.11"], pinned="lowest"))
    use(environments.VersionSet("b", "", ["3.11"], pinned="lowest"))
    assert len(built) == 6  # exact versions do not grow old


def test_each_set_tells_what_came_of_it_and_stops_no_other(script, environments, monkeypatch, tmp_path, capsys):
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = [("good", [here]), ("bad", [here]), ("slow", [here]), ("broken", [here]), ("absent", ["2.1"])]
    monkeypatch.setattr(script, "sets", lambda: {n: environments.VersionSet(n, "", p) for n, p in wanted})
    monkeypatch.setattr(script, "versions", lambda _: {"torch": "1", "timm": "2"})

    class Environment:
        def __init__(self, wanted, *_):
            if wanted.name == "broken":
                raise subprocess.CalledProcessError(2, ["/somewhere/uv"])
            paths[:] = [str(tmp_path / f"test_{wanted.name}.py")]

        def __enter__(self):
            return Path(sys.executable)

        def __exit__(self, *_):
            pass

    paths = ["."]
    monkeypatch.setattr(script, "environment", Environment)
    plain = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no | GPU')\n"
    (tmp_path / "test_good.py").write_text(plain)
    (tmp_path / "test_bad.py").write_text(plain + "def test_c(): assert 0\n")
    (tmp_path / "test_slow.py").write_text("import time\ndef test_d(): time.sleep(60)\n")
    rows = {}
    for name, one in script.sets().items():
        minutes = 0.05 if name == "slow" else 5
        rows[name] = script.run(one, paths, tmp_path, minutes, fresh=False, workers=0)
    states = {name: row.state for name, row in rows.items()}
    assert states == {
        "good": "passed",
        "bad": "failed",
        "slow": "stopped after 0.05 minutes",
        "broken": "not installed: uv ended with 2, see broken.log",
        "absent": "not run: no Python 2.1 here",
    }
    assert (rows["bad"].passed, rows["bad"].failed, rows["bad"].skipped) == (1, 1, 1)
    assert rows["good"].reasons == "no | GPU (1)"
    assert "test_c" in (tmp_path / "bad.log").read_text()
    table = script.table(rows.values(), ("set", "passed", "reasons")).splitlines()
    assert table[2] == r"| good | 1 | no \| GPU (1) |"
    assert table[-1] == "| absent |  |  |"
