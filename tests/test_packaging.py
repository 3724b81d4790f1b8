"""What is handed out: the wheel holds the whole package, and the files around it say what is true."""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import foveate

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory):
    """The built wheel."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is in the extra test")
    (file,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    return file


@pytest.fixture(scope="module")
def wheel(wheel_file):
    """The built wheel, opened."""
    with zipfile.ZipFile(wheel_file) as opened:
        yield opened


@pytest.fixture(scope="module")
def tracked():
    """The files of the project, of which git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone: nothing says which files belong to the project")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_wheel_holds_every_file_of_the_package(wheel, tracked):
    package = {name for name in tracked if name.startswith("foveate/")}
    held = {name for name in wheel.namelist() if name.startswith("foveate/")}
    assert {Path(name).suffix for name in package} >= {".py", ".pyi", ".c", ".jinja"}
    assert "foveate/py.typed" in package
    assert len([name for name in package if not name.endswith(".py")]) > 20  # templates, C files, tables, stubs
    assert package <= held
    assert not [name for name in held if "__pycache__" in name or name.endswith((".so", ".pyc"))]
    assert {name.split("/")[0] for name in wheel.namelist()} == {"foveate", f"foveate-{foveate.__version__}.dist-info"}


def test_the_sdist_holds_every_file_that_makes_a_wheel_and_its_tests(tmp_path, tracked):
    builder = pytest.importorskip("hatchling.builders.sdist", reason="hatchling is in the extra test")
    (file,) = builder.SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(file) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    assert {"PKG-INFO", "pyproject.toml", "README.md", "LICENSE"} <= held
    assert {name for name in tracked if name.startswith(("foveate/", "tests/"))} <= held
    assert not [name for name in held if "__pycache__" in name or name.endswith((".so", ".pyc"))]


# What a newcomer does first: where the package comes from, its version, and the cost of a plan.
FIRST = """
import sys, foveate
from foveate.cli import main
print(foveate.__file__)
sys.argv = ["foveate", "cost", "mobilenetv2_035", "--plan", "ulsam(groups=4) after blocks.5.1", "--json"]
main()
"""


@pytest.mark.slow(
    reason="it builds and installs",
    guards=(
        "pyproject.toml",
        "foveate/__init__.pyi",
        "foveate/__init__.py",
    ),
)
def test_the_wheel_works_where_the_clone_is_not(wheel_file, tmp_path):
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    pip = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet", "--no-index")
    where = {"cwd": elsewhere, "env": clean, "check": True, "capture_output": True, "text": True}
    subprocess.run([*pip, "--no-deps", "--no-compile", "--target", there, wheel_file], **where)
    where["env"] = {**clean, "PYTHONPATH": str(there), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run([there / "bin" / "foveate", "--version"], **where).stdout
    assert said.strip() == foveate.__version__
    origin, _, cost = subprocess.run([sys.executable, "-c", FIRST], **where).stdout.partition("\n")
    assert Path(origin) == there / "foveate" / "__init__.py"
    counted = json.loads(cost)
    assert counted["with_the_plan"]["params"] > counted["without"]["params"] > 1_000_000


def test_the_wheel_says_what_it_is(wheel):
    inside = f"foveate-{foveate.__version__}.dist-info"
    metadata = wheel.read(f"{inside}/METADATA").decode()
    for line in ("Name: foveate", "License-Expression: Apache-2.0", "Requires-Python: >=3.11", "Provides-Extra: web"):
        assert f"\n{line}\n" in metadata
    assert "# foveate" in metadata  # the README
    assert "foveate = foveate.cli:main" in wheel.read(f"{inside}/entry_points.txt").decode()
    assert f"{inside}/licenses/LICENSE" in wheel.namelist()


def test_versions_and_licence_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == PROJECT["version"] == foveate.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert PROJECT["description"].startswith("Spatial attention for convolutional networks")


def test_hooks_before_a_commit_are_those_of_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    checked = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    programs = [line.strip().removeprefix("$(BIN)/").split()[:2] for line in checked.splitlines()]
    assert [hook["entry"].split()[:2] for hook in hooks] == programs


def test_the_workflow_runs_what_the_project_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    job = workflow["jobs"]["test"]
    assert any(".ci/run" in step.get("run", "") for step in job["steps"])
    said = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)}
    assert set(job["strategy"]["matrix"]["python"]) <= said
    assert workflow["permissions"] == {"contents": "read"}


def test_the_image_is_made_of_files_that_are_there():
    lines = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in shlex.split(line)[1:-1]]
    allowed = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in allowed  # else Docker does not see it
    extras = re.search(r"\$wheel\[(.*?)\]", "\n".join(lines))[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
