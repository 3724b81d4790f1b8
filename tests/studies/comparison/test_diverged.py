"""A run that diverges takes its plan out of a comparison, and nothing else."""

import csv
import json

import pytest
import timm
import torch

import foveate as fv
from foveate.cli import main
from foveate.training.metrics import Diverged

RECIPE = fv.Recipe(epochs=1, batch_size=8, image_size=32, learning_rate=1e-3)
FAMILY = "se|ulsam(groups=4) after layer2.0"
SE, ULSAM, BAM = "se after layer2.0", "ulsam(groups=4) after layer2.0", "bam after layer2.0"
WHY = "the loss is nan in epoch 1, step 2"


def compare(data, output):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=2)
    return fv.compare(network, [FAMILY, BAM], data, RECIPE, seeds=2, output=output, progress=False)


@pytest.fixture
def grid(folder, tmp_path):
    """A comparison, and a function that has runs of it diverge."""
    data, output = fv.open_data(folder), tmp_path / "grid"
    found = compare(data, output)

    def diverge(label, *seeds):
        for seed in seeds:
            file = output / "runs" / found.setup.runs[label][seed] / "result.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"scores": {}, "diverged": WHY}))

    return found, data, diverge


def test_the_other_plans_are_compared_and_it_is_named(grid, capsys):
    found, data, diverge = grid
    assert {factor.name for factor in found.factors} == {"mechanism"}
    diverge(SE, 1, 0)
    again = compare(data, found.folder)
    for one in (again, fv.read_comparison(found.folder)):
        assert [row.label for row in one.rows] == ["none", ULSAM, BAM]
        assert one.diverged == {SE: f"seed 0: {WHY}"}
        assert one.factors == ()
        assert one.rows[1].score == found.rows[2].score
        assert one.rows[1].analysis.plans == 2  # what Holm's correction is for
        lines = one.left_out
        assert lines[0] == f"{SE}: not compared, for a run diverged: seed 0: {WHY}"
        assert lines[1] == f"{FAMILY}: no effects of what varies, for not all of it is compared"
        assert all(line in text for line in lines for text in (str(one), one._repr_html_()))
    assert set(again.models) == {"none", ULSAM, BAM}

    rows = list(csv.DictReader((found.folder / "comparison.csv").read_text().splitlines()))
    assert [(row["plan"], row["verdict"]) for row in rows][-1] == (SE, "diverged")
    assert rows[-1]["top1"] == rows[-1]["difference"] == ""
    assert WHY in rows[-1]["verdict_text"]
    assert not (found.folder / "factors.csv").exists()
    page = fv.report(again, data).read_text()
    assert "not compared, for a run diverged" in page
    capsys.readouterr()


def test_the_command_shows_the_others_and_ends_with_the_code_of_divergence(grid, tmp_path, capsys):
    found, _, diverge = grid
    diverge(BAM, 1)
    page = tmp_path / "page.md"
    with pytest.raises(SystemExit) as ended:
        main(["results", str(found.folder), "--page", str(page)])
    said = capsys.readouterr()
    assert ended.value.code == 3
    assert "Holm" in said.out
    assert f"{BAM}: not compared" in " ".join(said.out.split())
    assert said.err.splitlines()[-1] == f"foveate: {BAM}: not compared, for a run diverged: seed 1: {WHY}"
    assert f"{BAM}: not compared, for a run diverged: seed 1: {WHY}." in page.read_text().replace("\\", "")
    with pytest.raises(SystemExit):
        main(["results", str(found.folder), "--json"])
    assert json.loads(capsys.readouterr().out)[-1] == {
        "plan": BAM,
        "verdict": "diverged",
        "verdict_text": f"seed 1: {WHY}",
    }


@pytest.mark.parametrize("labels", [["none"], [SE, ULSAM, BAM]])
def test_without_the_baseline_or_any_plan_there_is_no_comparison(grid, labels):
    found, data, diverge = grid
    for label in labels:
        diverge(label, 1)
    for again in (lambda: compare(data, found.folder), lambda: fv.read_comparison(found.folder)):
        with pytest.raises(Diverged) as raised:
            again()
        assert str(raised.value) == f"{labels[0]}, seed 1: {WHY}"
