"""A comparison as a file, and its runs as a table of text, from which it goes on where the weights are not."""

import base64
import csv
import tracemalloc
import zlib
from collections import Counter

import pytest
import torch

import foveate as fv
from foveate.cli import main
from foveate.errors import FoveateError
from foveate.io import write_csv
from foveate.studies.comparison import scheduler
from foveate.studies.comparison.protocol import run_table
from foveate.studies.comparison.run import Run, RunResult

RECIPE = fv.Recipe(epochs=1, batch_size=8, image_size=32, learning_rate=1e-3)
PLANS = ["se after layer2.0", "identity replacing layer1.0"]
TEXT = """
title: a toy
data: DATA
model: test_resnet
plans: |
  se after layer2.0
  identity replacing layer1.0
seeds: 2
epochs: 1
batch_size: 8
image_size: 32
learning_rate: 1e-3
"""


@pytest.fixture(scope="module")
def table(folder, tmp_path_factory):
    """A comparison and the table that it wrote."""
    place = tmp_path_factory.mktemp("table")
    runs = place / "runs.csv"
    found = fv.compare("test_resnet", PLANS, folder, RECIPE, 2, output=place / "out", runs=runs, progress=False)
    return found, runs


def compare_again(folder, output, runs, plans=PLANS, **options):
    return fv.compare("test_resnet", plans, folder, RECIPE, 2, output=output, runs=runs, progress=False, **options)


def test_goes_on_from_the_table_alone(table, folder, tmp_path, monkeypatch):
    """Nothing is trained again, and every table is the same, byte for byte; only a new plan is trained, and added."""
    found, runs = table
    real = scheduler.fit
    monkeypatch.setattr(scheduler, "fit", lambda *_, **__: pytest.fail("trained"))
    again = compare_again(folder, tmp_path / "out", runs)
    for label in found.correct:
        assert torch.equal(again.correct[label], found.correct[label])
        assert torch.equal(again.predictions[label], found.predictions[label])
    for name in ("comparison.csv", "runs.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (found.folder / name).read_bytes()
    assert [row.cost for row in again.rows] == [row.cost for row in found.rows]
    with pytest.raises(FoveateError, match="trained network of none is not in"):
        _ = again.models["none"]
    assert "none" not in again.models
    assert list(again.models) == []  # and the report does without
    assert "no audit of none, se after layer2.0" in fv.report(again, fv.open_data(folder)).read_text("utf-8")
    trained = []
    monkeypatch.setattr(scheduler, "fit", lambda *a, **k: trained.append(a[2].seed) or real(*a, **k))
    copy = tmp_path / "copy.csv"
    copy.write_bytes(runs.read_bytes())
    more = compare_again(folder, tmp_path / "more", copy, [*PLANS, "se after layer3.0"])
    assert trained == [0, 1]
    assert list(more.models) == ["se after layer3.0"]
    page = fv.report(more, fv.open_data(folder)).read_text("utf-8")
    assert "no audit of none, se after layer2.0, identity replacing layer1.0:" in page
    assert "Grad-CAM" in page
    before, after = (run_table.read_table(file) for file in (runs, copy))
    assert len(after) == len(before) + 2
    assert all(after[key] == row for key, row in before.items())


def test_the_trials_of_a_tuning_are_in_the_table_too(folder, tmp_path, monkeypatch):
    plans, runs, rates = ["se after layer2.0"], tmp_path / "runs.csv", (1e-3, 1e-2)
    found = compare_again(folder, tmp_path / "out", runs, plans, learning_rates=rates)
    judged_by = {run: row["images"] for (run, _), row in run_table.read_table(runs).items()}
    assert sorted(Counter(judged_by.values()).values()) == [4, 4]  # trials: by images held out of training
    monkeypatch.setattr(scheduler, "fit", lambda *_, **__: pytest.fail("trained"))
    again = compare_again(folder, tmp_path / "again", runs, plans, learning_rates=rates)
    assert again.setup.tuning == found.setup.tuning
    assert (again.folder / "comparison.csv").read_bytes() == (found.folder / "comparison.csv").read_bytes()


def test_which_were_right_is_read_without_the_data(table):
    found, runs = table
    rows = run_table.read_table(runs)
    for label, names in found.setup.runs.items():
        for seed, name in enumerate(names):
            assert torch.equal(run_table.were_right(rows[name, "1"]), found.correct[label][seed])


@pytest.mark.parametrize(
    "change,message",
    [
        ({"predictions": "eJw="}, "is damaged"),
        ({"predictions": "!"}, "is damaged"),
        ({"score top1": "1.5"}, "says top-1 1.5, its predictions"),
        ({"images": "3"}, "not those of its images"),
        ({"cost macs": "many"}, "is damaged"),
        ({"seconds": ""}, "is damaged"),
    ],
)
def test_a_row_that_is_damaged_is_not_believed(table, folder, tmp_path, change, message):
    _, runs = table
    rows = [{**row, **(change if n == 0 else {})} for n, row in enumerate(run_table.read_table(runs).values())]
    write_csv(tmp_path / "runs.csv", rows)
    with pytest.raises(FoveateError, match=message):
        compare_again(folder, tmp_path / "out", tmp_path / "runs.csv")


def test_a_few_bytes_that_stand_for_many_are_not_unpacked():
    packed = base64.b64encode(zlib.compress(bytes(50_000_000), 9)).decode()
    tracemalloc.start()
    with pytest.raises(FoveateError, match="is damaged"):
        run_table.were_right({"run": "r", "classes": "300", "images": "10", "predictions": packed})
    with pytest.raises(FoveateError, match="is damaged: it says that it is about 10000000000 images"):
        run_table.were_right({"run": "r", "classes": "300", "images": "10000000000", "predictions": packed})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_other_tables_and_no_folder(table, folder, tmp_path):
    (tmp_path / "other.csv").write_text("plan,seed\nnone,0\n")
    with pytest.raises(FoveateError, match="not a table of runs: it has no column 'run'"):
        compare_again(folder, tmp_path / "out", tmp_path / "other.csv")
    with pytest.raises(FoveateError, match="give output="):
        compare_again(folder, None, table[1])


@pytest.mark.parametrize("classes", [2, 256, 257, 1000])
def test_predictions_of_many_classes_come_back(classes):
    generator = torch.Generator().manual_seed(classes)
    labels, predictions = (torch.randint(0, classes, (500,), generator=generator, dtype=torch.int32) for _ in range(2))
    run = Run("net", "none", None, RECIPE, "data")
    top1 = 100 * (predictions == labels).double().mean().item()
    row = run_table.row_of(run, RunResult({"top1": top1}, fv.Cost(1, 2, 3), predictions, labels, 1, 1, {}), classes)
    text = {name: "" if value is None else str(value) for name, value in row.items()}
    assert torch.equal(run_table.were_right(text), predictions == labels)
    assert torch.equal(run_table._result(text, labels, "file").predictions, predictions)


def test_diverged_and_paused_runs_are_in_the_table(tmp_path):
    run, none = Run("net", "none", None, RECIPE.with_(epochs=4), "data"), torch.empty(0, dtype=torch.int32)
    labels = torch.tensor([0, 1, 1, 0], dtype=torch.int32)
    paused = RunResult({"top1": 100.0}, fv.Cost(1, 2, 3), labels, labels, 1.0, 2.0, {"torch": "2"})
    lost = RunResult({}, fv.Cost(1, 2, 3), none, none, 0.0, 0.0, {"torch": "2"}, "the loss is nan")
    rows = [run_table.row_of(run, lost, 2), run_table.row_of(run, paused, 2, until_epoch=1)]
    file = run_table.keep(tmp_path / "runs.csv", rows)
    assert [key[1] for key in run_table.read_table(file)] == ["1", "4"]
    assert run_table.restore(file, tmp_path, [run], labels.tolist()) == 1
    assert run_table.restore(file, tmp_path, [run], labels.tolist(), until_epoch=1) == 1
    assert run_table.restore(file, tmp_path, [run], labels.tolist()) == 0
    with pytest.raises(FoveateError, match="judged by 4 images, and here are 3"):
        run_table.restore(file, tmp_path / "other", [run], [0, 1, 1], until_epoch=1)


# ---- the file


def test_protocol_file_is_the_call(table, folder, tmp_path):
    found, _ = table
    file = tmp_path / "toy.yaml"
    file.write_text(TEXT.replace("DATA", found.setup.data))
    protocol = fv.read_protocol(file)
    assert protocol.request()["plans"] == PLANS
    assert protocol.recipe == RECIPE
    assert (protocol.seeds, protocol.parts, protocol.margin, protocol.pretrained) == (2, None, None, False)
    data = fv.open_data(folder)
    protocol.check(data)
    file.write_text(f"{TEXT.replace('DATA', found.setup.data)}fingerprint: {data.fingerprint[:-1]}x\n")
    with pytest.raises(FoveateError, match="other images or parts"):
        fv.read_protocol(file).check(data)
    file.write_text(TEXT)
    with pytest.raises(FoveateError, match="is about DATA"):
        fv.read_protocol(file).check(data)


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("seeds: 2", "", "has no field 'seeds'"),
        ("seeds: 2", "seeds: 0", "at least 1"),
        ("seeds: 2", "seeds: two", "is not int"),
        ("epochs: 1", "epoch: 1", "no field 'epoch'; did you mean 'epochs'"),
        ("epochs: 1", "epochs: 1\nseed: 3", "no field 'seed'"),
        ("epochs: 1", "epochs: -1", "epochs=-1"),
        ("epochs: 1", "start: zero", "neither mechanism nor identity"),
        ("epochs: 1", "plan: [a]", "without lists"),
        ("  se after layer2.0\n  identity replacing layer1.0\n", "", "plans holds none"),
    ],
)
def test_slips_in_a_protocol(tmp_path, old, new, message):
    assert old in TEXT
    file = tmp_path / "toy.yaml"
    file.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(FoveateError, match=message):
        fv.read_protocol(file)


def test_the_projects_own_protocols_are_read():
    from pathlib import Path

    files = sorted((Path(__file__).parents[3] / "benchmarks" / "evidence").glob("*.yaml"))
    protocols = [fv.read_protocol(file) for file in files]
    kinds = {(protocol.data, protocol.parts) for protocol in protocols}
    assert len({protocol.fingerprint for protocol in protocols}) == len(kinds) == 3
    assert all(fv.Family.parse(plan) for protocol in protocols for plan in protocol.plans)


def test_command_adds_a_row(table, folder, tmp_path, capsys, monkeypatch):
    """The command takes what is finished from the table; ``--plans`` adds a row; the protocol is not given twice."""
    found, runs = table
    file, copy = tmp_path / "toy.yaml", tmp_path / "runs.csv"
    file.write_text(TEXT.replace("DATA", found.setup.data))
    copy.write_bytes(runs.read_bytes())
    line = ["compare", str(folder), "--protocol", str(file), "--runs", str(copy), "--output", str(tmp_path / "out")]
    trained, real = [], scheduler.fit
    monkeypatch.setattr(scheduler, "fit", lambda *a, **k: trained.append(a[2].seed) or real(*a, **k))
    monkeypatch.setattr(fv, "report", lambda *_: "no report")
    with pytest.raises(SystemExit) as stop:
        main([*line, "--plans", "se after layer3.0", "--json"])
    assert not stop.value.code
    assert trained == [0, 1]
    assert '"plan": "se after layer3.0"' in capsys.readouterr().out
    with copy.open() as opened:
        assert len(list(csv.DictReader(opened))) == 8
    for more, message in ((["--epochs", "2"], "--recipe and its fields"), (["--pretrained"], "--pretrained")):
        with pytest.raises(SystemExit) as stop:
            main([*line, *more])
        assert stop.value.code
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", str(folder)])
    assert "--protocol FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda line: line.rpartition(",")[0].rpartition(",")[0], "row 2 has too few or too many cells"),
        (lambda line: line + ",1", "row 2 has too few or too many cells"),
        (lambda line: line.replace("net,", "net,", 1).replace(",7,", ",seven,", 1), "row 2 has a seed or epochs"),
    ],
)
def test_a_damaged_table_is_named(change, words, tmp_path):
    none = torch.empty(0, dtype=torch.int32)
    lost = RunResult({}, fv.Cost(1, 2, 3), none, none, 0.0, 0.0, {"torch": "2"}, "the loss is nan")
    rows = [run_table.row_of(Run("net", "none", None, RECIPE.with_(seed=seed), "data"), lost, 2) for seed in (3, 7)]
    file = run_table.keep(tmp_path / "runs.csv", rows)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], change(lines[2])]))
    for call in (lambda: run_table.read_table(file), lambda: run_table.keep(file, rows)):
        with pytest.raises(FoveateError, match=words):
            call()
