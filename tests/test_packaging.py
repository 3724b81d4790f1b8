"""What is handed out: the wheel holds the whole package, and the files around it say what is true."""

import re
import shlex
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import foveate

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, opened."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is in the extra test")
    (file,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    with zipfile.ZipFile(file) as opened:
        yield opened


def test_the_wheel_holds_every_file_of_the_package(wheel):
    listed = subprocess.run(["git", "ls-files", "-z", "foveate"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone: nothing says which files belong to the package")
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    held = {name for name in wheel.namelist() if name.startswith("foveate/")}
    assert len([name for name in tracked if not name.endswith(".py")]) > 20  # templates, C files, tables, stubs
    assert tracked <= held
    assert not [name for name in held if "__pycache__" in name or name.endswith((".so", ".pyc"))]
    assert {name.split("/")[0] for name in wheel.namelist()} == {"foveate", f"foveate-{foveate.__version__}.dist-info"}


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
