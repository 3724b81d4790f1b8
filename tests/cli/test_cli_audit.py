"""``foveate audit``: table, JSON, CSV, and one line for an error."""

import csv
import io
import json

import pytest
import timm
import torch

import foveate as fv


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    fv.insert(model, "ulsam(groups=2) after layer2.0; se after layer3.0")
    return fv.save(model, tmp_path / "model")


def test_table(run, saved, folder):
    code, out, err = run("audit", saved, folder, "--image-size", "32")
    assert code == 0, err
    lines = out.splitlines()
    assert "accuracy" in lines[0]
    assert [line.split()[0] for line in lines[2:4]] == ["layer2.0", "layer3.0"]
    assert max(map(len, lines[:4])) <= 100
    assert lines[-1].startswith("layer3.0 (se after): ")


def test_json_and_csv(run, saved, folder, tmp_path):
    code, out, _ = run("audit", saved, folder, "--image-size", "32", "--json", "--csv", tmp_path / "a.csv")
    assert code == 0
    found = json.loads(out)
    assert [row["site"] for row in found["modules"]] == ["layer2.0", "layer3.0"]
    kept = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text("utf-8"))))
    assert [row["verdict"] for row in kept] == [row["verdict"] for row in found["modules"]]
    code, out, _ = run("audit", saved, folder, "--image-size", "32", "--limit", "6", "--csv", "-")
    assert code == 0
    assert len(list(csv.DictReader(io.StringIO(out)))) == 2


def test_errors(run, saved, folder, tmp_path):
    code, out, err = run("audit", saved, folder, "--json", "--csv", "-")
    assert (code, out) == (2, "")
    assert "both print" in err
    code, _, err = run("audit", "test_resnet", folder)
    assert code == 2
    assert "no inserted attention to audit" in err
    code, _, err = run("audit", tmp_path / "nothing", folder)
    assert code == 2
