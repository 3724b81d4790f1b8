"""Comparisons are fair, resumable, and say what they found."""

import base64
import csv
import json
import shutil
import xml.etree.ElementTree as ET

import pytest
import timm
import torch

import foveate as fv
from foveate.cli import main
from foveate.errors import FoveateError
from foveate.studies.comparison import scheduler as grid
from foveate.training.metrics import Diverged

RECIPE = fv.Recipe(epochs=1, batch_size=8, image_size=32, learning_rate=1e-3)
PLANS = ["se after layer2.0", "ulsam(groups=4) replacing layer1.0"]


def network():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=2)


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "grid"
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    result = fv.compare(model, PLANS, fv.open_data(folder), RECIPE, seeds=2, output=output, progress=False)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert fv.plan_of(model) is None
    return result


def test_rows(found):
    assert [row.label for row in found.rows] == ["none", *PLANS]
    assert found.seeds == (0, 1)
    assert all(len(row.top1) == 2 for row in found.rows)
    assert found.rows[0].difference is None
    assert found.rows[1].cost.params > found.rows[0].cost.params > found.rows[2].cost.params
    assert found.rows[0].cost == fv.cost(found.models["none"], 32)


def test_difference_is_that_of_the_runs(found):
    base, row = found.rows[0], found.rows[1]
    assert row.difference.mean == pytest.approx(sum(row.top1) / 2 - sum(base.top1) / 2)
    assert row.verdict == row.analysis.verdict
    assert base.verdict == "baseline"


def test_all_that_evaluation_measures_is_kept(found, folder):
    evaluation = fv.evaluate(found.models["none"], fv.open_data(folder).val, image_size=32)
    for name in ("loss", "top1", "top5", "macro_f1", "ece"):
        factor = 1 if name == "loss" else 100
        assert found.rows[0].scores[name][0] == pytest.approx(factor * getattr(evaluation, name), abs=1e-3)


def test_tables_are_written(found):
    with (found.folder / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["plan"] for row in rows] == ["none", *PLANS]
    assert float(rows[1]["difference"]) == pytest.approx(found.rows[1].difference.mean, abs=1e-3)
    with (found.folder / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 6
    assert all((found.folder / "runs" / run["run"] / "result.json").is_file() for run in runs)
    json.dumps(found.as_dicts())


def test_every_plan_of_a_seed_starts_from_the_same_shared_weights(folder, monkeypatch):
    starts = []

    def spy(model, *args, **kwargs):
        starts.append((kwargs, {k: v.clone() for k, v in model.state_dict().items()}, args[1].seed))
        return real(model, *args, **kwargs)

    real = grid.fit
    monkeypatch.setattr(grid, "fit", spy)
    fv.compare("test_resnet", PLANS[0], fv.open_data(folder), RECIPE, seeds=(3, 5), progress=False)
    (_, none3, _), (_, plan3, _), (_, none5, _), (_, plan5, _) = starts
    assert [start[2] for start in starts] == [3, 3, 5, 5]
    for none, plan in ((none3, plan3), (none5, plan5)):
        assert all(torch.equal(value, plan[key]) for key, value in none.items())
    assert not all(torch.equal(value, none5[key]) for key, value in none3.items())
    attention = [key for key in plan3 if key not in none3]
    assert any(not torch.equal(plan3[key], plan5[key]) for key in attention)


def test_finished_runs_are_read_not_run_again(found, folder, monkeypatch):
    monkeypatch.setattr(grid, "fit", lambda *_, **__: pytest.fail("trained"))
    again = fv.compare(network(), PLANS, fv.open_data(folder), RECIPE, seeds=2, output=found.folder, progress=False)
    assert [row.top1 for row in again.rows] == [row.top1 for row in found.rows]
    assert all(torch.equal(again.correct[label], found.correct[label]) for label in found.correct)
    assert [row.difference for row in again.rows] == [row.difference for row in found.rows]


def test_networks_are_read_from_the_folder_when_they_are_asked_for(found, folder, monkeypatch):
    monkeypatch.setattr(grid, "fit", lambda *_, **__: pytest.fail("trained"))
    again = fv.compare(network(), PLANS, fv.open_data(folder), RECIPE, seeds=2, output=found.folder, progress=False)
    assert list(again.models) == ["none", *PLANS]
    for label, model in found.models.items():
        other = again.models[label].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in model.state_dict().items())


def test_another_network_is_another_comparison(found, folder):
    torch.manual_seed(1)
    other = timm.create_model("test_resnet", num_classes=2)
    data = fv.open_data(folder)
    fv.compare(other, PLANS[0], data, RECIPE, seeds=1, output=found.folder, progress=False)
    assert len(list((found.folder / "runs").iterdir())) == 6 + 2
    fv.compare(network(), PLANS, data, RECIPE, seeds=2, output=found.folder, progress=False)


def test_a_plan_that_does_not_fit_is_found_before_training(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(FoveateError, match="layer9"):
        fv.compare(network(), [PLANS[0], "se after layer9"], fv.open_data(folder), RECIPE, progress=False)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"plans": []}, "at least one plan"),
        ({"plans": ["se after layer2.0", "se after layer2.0"]}, "given twice"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": (1, 1)}, "different seeds"),
        ({"learning_rates": (0.1, 0.1)}, "different positive numbers"),
        ({"learning_rates": (0.1, -0.1)}, "different positive numbers"),
        ({"learning_rates": (0.1,)}, "one leaves nothing to choose"),
    ],
)
def test_errors(data, arguments, message):
    with pytest.raises(FoveateError, match=message):
        fv.compare(network(), **{"plans": PLANS, "data": data, "recipe": RECIPE, "progress": False, **arguments})


def test_report_is_one_page_with_its_pictures(found, data):
    page = fv.report(found, data, images=2, commands=["foveate compare ..."])
    text = page.read_text()
    assert page.name == "report.html"
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert PLANS[0] in text
    assert "Does the attention do anything?" in text
    assert all(f'<th scope="row">{name}</th>' in text for name in data.classes)
    assert text.count("loss: training dotted, validation solid") == 2 * len(found.rows)  # broad and narrow
    assert "true class" in text
    assert f"{found.setup.val_images} validation images</dd>" in text
    drawn = [file.read_bytes() for file in (found.folder / "overlays").glob("*.png")]
    assert len(drawn) >= 2
    assert all(base64.b64encode(png).decode() in text for png in drawn)  # the page has the same bytes
    assert "Does the attention" not in fv.report(found, data, images=1, audited=0).read_text()


def test_report_of_something_else(data):
    with pytest.raises(FoveateError, match="report takes a comparison, from compare or read_comparison, not ResNet"):
        fv.report(network(), data)


def test_page_with_tables_and_pictures(found, tmp_path):
    files = fv.write_page(found, tmp_path / "docs" / "toy.md", "foveate compare toy")
    assert {file.name for file in files} == {"toy.md", "toy.csv", "toy_runs.csv", "toy_cost.svg", "toy_seeds.svg"}
    text = files[-1].read_text()
    for words in (*PLANS, "images/toy_cost.svg", "images/toy_seeds.svg", "(toy.csv)", "foveate compare toy", "p, Holm"):
        assert words in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table[:5]}) == 1
    for name in ("toy_cost.svg", "toy_seeds.svg"):
        assert ET.parse(tmp_path / "docs" / "images" / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314
    assert (tmp_path / "docs" / "toy.csv").read_bytes() == (found.folder / "comparison.csv").read_bytes()


def test_printed(found, capsys):
    found.print()
    said = " ".join(capsys.readouterr().out.split())
    assert found.rows[1].verdict in said
    assert "One recipe for all plans: none was tuned." in said


def test_one_seed_gives_no_verdict_in_any_output(found, folder, tmp_path):
    output = shutil.copytree(found.folder, tmp_path / "copy")
    one = fv.compare(network(), PLANS, fv.open_data(folder), RECIPE, seeds=1, output=output, progress=False)
    text = "no verdict: one seed, at least two are needed"
    assert one.rows[1].verdict.startswith(text)
    with (output / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["verdict"], row["p_holm"]) for row in rows] == [("baseline", ""), (text, ""), (text, "")]


def test_a_margin_is_kept_and_can_be_asked_for_later(found, folder, tmp_path):
    assert found.setup.margin is None
    assert fv.read_comparison(found.folder, margin=2).setup.margin == 2.0
    with pytest.raises(FoveateError, match="margin=-1: give points"):
        fv.read_comparison(found.folder, margin=-1)
    output = shutil.copytree(found.folder, tmp_path / "copy")
    data = fv.open_data(folder)
    fv.compare(network(), PLANS, data, RECIPE, seeds=2, margin=1.5, output=output, progress=False)
    read = fv.read_comparison(output)
    assert read.setup.margin == 1.5
    page = fv.write_page(read, tmp_path / "page.md")[-1].read_text()
    assert "worse by more than 1.5 points" in page


def test_heads_and_pools_for_each_class_are_for_the_classes_of_the_data(folder, tmp_path):
    model = timm.create_model("test_resnet", num_classes=5)
    plans = ["ltpa as head on layer3, layer4", "attention_pool(classes=2) as pool", "se after layer2.0"]
    recipe = RECIPE.with_(batch_size=16)
    result = fv.compare(model, plans, fv.open_data(folder), recipe, seeds=1, progress=False, output=tmp_path)
    assert [row.label for row in result.rows] == ["none", *plans]
    assert fv.plan_of(model) is None
    trained = result.models[plans[0]]
    assert trained.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    kept = recipe.with_(classifier="keep")
    with pytest.raises(FoveateError, match="classifier='keep'"):
        fv.compare(model, plans[:1], fv.open_data(folder), kept, seeds=1, progress=False)


def test_a_run_that_diverged_is_named_when_the_folder_is_read(folder, tmp_path, capsys):
    data, output = fv.open_data(folder), tmp_path / "grid"
    found = fv.compare(network(), PLANS[0], data, RECIPE, seeds=2, output=output, progress=False)
    place = output / "runs" / found.setup.runs[PLANS[0]][1] / "result.json"
    content = json.loads(place.read_text()) | {"scores": {}, "diverged": "the loss is NaN"}
    place.write_text(json.dumps(content))
    message = "se after layer2.0, seed 1: the loss is NaN"
    with pytest.raises(Diverged, match=message):
        fv.read_comparison(output)
    with pytest.raises(Diverged, match=message):
        fv.compare(network(), PLANS[0], data, RECIPE, seeds=2, output=output, progress=False)
    with pytest.raises(SystemExit) as ended:
        main(["results", str(output)])
    assert ended.value.code == 3
    assert capsys.readouterr().err == f"foveate: {message}\n"
