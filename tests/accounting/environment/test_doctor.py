"""``doctor`` answers on any machine, and what is broken is a line that says what, and what to do."""

import importlib
import importlib.metadata
import json
import shutil
import sys

import pytest

import foveate as fv
from foveate.accounting.environment import doctor as looking
from foveate.accounting.environment import packages
from foveate.cli import main

SECTIONS = ["system", "packages", "extras", "torch", "devices", "kernels"]


@pytest.fixture(scope="module")
def found():
    return fv.doctor()


def section(diagnosis, name):
    return {line.name: line for line in diagnosis.findings if line.section == name}


def test_what_a_bug_report_needs(found):
    data = json.loads(json.dumps(found.as_dict()))
    assert [name for name in data if name not in ("problems", "environment")] == SECTIONS
    assert data["problems"] == []
    assert data["system"]["foveate"]["value"] == fv.__version__
    for name in ("torch", "torchvision", "timm", "numpy", "safetensors"):
        assert data["packages"][name]["value"] == importlib.metadata.version(name)
    assert int(data["torch"]["threads of an operation"]["value"]) >= 1
    assert {"web", "demo"} <= set(data["extras"])
    assert not {"docs", "test"} & set(data["extras"])
    for line in section(found, "kernels").values():
        assert line.value == "fused" or (line.value == "the plain definition" and line.advice), line
    text = str(found)
    assert text.startswith("No problem was found.\n\nSystem\n  foveate: ")
    assert all(f"\n{name.capitalize()}\n" in text for name in SECTIONS)


def test_every_package_that_is_needed_is_looked_at(found):
    needed = {name for name, _, extra in packages._requirements() if not extra}
    assert set(section(found, "packages")) == needed
    assert {"torch", "timm", "pyarrow"} <= needed


def test_a_package_that_cannot_be_imported_is_a_problem_with_its_reason(monkeypatch):
    load = importlib.import_module

    def broken(name, *rest):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        if name == "accelerate":
            raise SystemExit(3)
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    lines = {line.name: line for line in packages.packages()}
    assert "cannot be imported: RuntimeError: operator torchvision::nms does not exist" in lines["torchvision"].value
    assert "\n" not in lines["torchvision"].value
    assert lines["torchvision"].advice.startswith("pip install 'torchvision>=")
    assert "SystemExit" in lines["accelerate"].value
    assert {name for name, line in lines.items() if line.problem} == {"torchvision", "accelerate"}


def test_a_package_that_is_too_old_or_missing_is_a_problem_with_a_command(monkeypatch):
    version = importlib.metadata.version

    def other(name):
        if name == "timm":
            return "0.9.2"
        if name in ("numpy", "gradio"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", other)
    lines = {line.name: line for line in (*packages.packages(), *packages.extras())}
    assert lines["timm"].value.startswith("0.9.2, but foveate needs timm>=")
    assert lines["timm"].advice.startswith("pip install 'timm>=")
    assert lines["numpy"].value == "not installed"
    assert lines["web"].value == "gradio not installed"
    assert lines["web"].advice == "pip install 'foveate[web]'"
    assert {name for name, line in lines.items() if line.problem} == {"timm", "numpy"}  # an extra is a choice


def test_without_torch_it_says_so_and_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    monkeypatch.setattr(looking, "packages", packages.packages)
    diagnosis = fv.doctor()
    problems = {line.section for line in diagnosis.problems}
    assert {"packages", "torch", "devices"} <= problems
    assert str(diagnosis).startswith("Problems\n  packages, ")
    assert section(diagnosis, "system")["foveate"].value == fv.__version__


def test_without_metadata_or_compiler_or_home_it_says_so(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    diagnosis = fv.doctor()
    assert "PackageNotFoundError" in section(diagnosis, "packages")["not found out"].value
    assert "install gcc or clang" in section(diagnosis, "system")["compiler"].advice
    assert section(diagnosis, "environment")["HF_HOME"].value == "~/hub"
    assert str(tmp_path) not in str(diagnosis)


def test_a_device_that_does_not_compute_is_a_problem(monkeypatch):
    import torch

    class Properties:
        name, major, minor, total_memory = "Made-up", 9, 0, 2**34

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    (line,) = looking._devices()
    assert line.problem
    assert line.value == "does not compute: RuntimeError: no kernel image"


def test_command_line(capsys):
    for arguments in (["doctor"], ["doctor", "--json"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert not stop.value.code
        text = capsys.readouterr().out
        assert set(SECTIONS) <= set(json.loads(text)) if "--json" in arguments else "Packages\n" in text
