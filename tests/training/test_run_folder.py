from __future__ import annotations

import csv
import json
import shutil
import subprocess

import pytest
import torch
import yaml

from foveate.errors import FoveateError
from foveate.io import _place_code
from foveate.prediction.evaluate import evaluate
from foveate.surgery.saving.checkpoint import load
from foveate.training.fit import fit
from foveate.training.recipes.recipe import Recipe
from foveate.training.run_folder import RunFolder
from foveate.training.tasks.classification import Classification


def test_contract(tmp_path, data, new_net, recipe):
    output = tmp_path / "out" / "exp"
    model = new_net()
    result = fit(model, data, recipe, output=output, progress=False)
    assert result.folder == output
    assert {path.name for path in output.iterdir()} == {
        "args.yaml", "recipe.yaml", "summary.csv", "evaluation.json", "last", "model_best", "training.safetensors",
    }  # fmt: skip
    rows = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))
    assert tuple(rows[0])[:6] == ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")
    assert tuple(rows[0]) == Classification.columns
    assert [{key: float(value) for key, value in row.items()} for row in rows] == list(result.history)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    arguments = yaml.safe_load((output / "args.yaml").read_text())
    assert Recipe.from_dict(arguments["recipe"]) == recipe
    assert arguments["data"]["fingerprint"] == data.fingerprint
    assert arguments["plan"] == ""

    last = load(output / "last", new_net(seed=1))
    assert all(torch.equal(value, last.state_dict()[key]) for key, value in model.state_dict().items())
    best = load(output / "model_best", new_net(seed=1))
    top1 = evaluate(best, data.val, image_size=16).top1
    assert top1 == pytest.approx(max(row["eval_top1"] for row in result.history))
    config = json.loads((output / "last" / "config.json").read_text())
    assert config["info"]["eval_top1"] == result.history[-1]["eval_top1"]


def test_small_numbers_survive_yaml(tmp_path, data, new_net, recipe):
    recipe = recipe.with_(epochs=1, learning_rate=1e-5, weight_decay=1e-12)
    fit(new_net(), data, recipe, output=tmp_path, progress=False)
    assert Recipe.from_dict(yaml.safe_load((tmp_path / "args.yaml").read_text())["recipe"]) == recipe


@pytest.mark.parametrize("left", ["summary.csv", "last", "model_best", "training.safetensors"])
def test_a_folder_with_another_run_is_refused_and_untouched(tmp_path, data, new_net, recipe, left):
    fit(new_net(), data, recipe.with_(epochs=1), output=tmp_path, progress=False)
    for path in list(tmp_path.iterdir()):
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    held = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FoveateError) as error:
        fit(new_net(), data, recipe, output=tmp_path, progress=False)
    assert "already holds a run" in str(error.value)
    assert "--resume" in str(error.value)
    assert "another folder" in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == held


def test_other_files_do_not_matter(tmp_path, data, new_net, recipe):
    (tmp_path / "notes.txt").write_text("mine")
    fit(new_net(), data, recipe.with_(epochs=1), output=tmp_path, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_stale_temporaries_are_cleaned(tmp_path):
    (tmp_path / "last").mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    for stale in (".training.safetensors", ".summary.csv", "last/.model.safetensors"):
        (tmp_path / f"{stale}.{_place_code()}-{dead.pid}-7.tmp").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_text("mine")
    RunFolder(tmp_path, resume=True)
    assert {path.name for path in tmp_path.rglob("*")} == {"last", "notes.tmp"}


def test_an_output_that_is_a_file(tmp_path, data, new_net, recipe):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(FoveateError, match="is a file"):
        fit(new_net(), data, recipe, output=path, progress=False)
    with pytest.raises(FoveateError, match="cannot make the folder"):
        fit(new_net(), data, recipe, output=path / "below", progress=False)
    assert path.read_text() == "mine"
