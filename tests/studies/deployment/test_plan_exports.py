"""Every plan of a comparison as a file: the numbers, the table, the report, and what is refused before training."""

import pytest

import foveate as fv
from foveate.cli import main
from foveate.errors import FoveateError
from foveate.io import write_csv
from foveate.studies.deployment.plan_exports import FILE, read_plan_exports

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
PLAN = "ulsam after layer2"


@pytest.fixture(scope="module")
def compared(folder, tmp_path_factory):
    data = fv.open_data(folder)
    recipe = fv.Recipe(epochs=1, image_size=32, batch_size=16, augmentation="none")
    found = fv.compare("test_resnet", [PLAN], data, recipe, 1, output=tmp_path_factory.mktemp("c"), progress=False)
    return found, data


@pytest.mark.slow(
    reason="four files of a comparison; each step of it is tested alone",
    guards=(
        "foveate/exporters/",
        "foveate/studies/deployment/",
        "foveate/studies/reporting/",
    ),
)
def test_a_row_for_each_plan_and_target(compared):
    found, data = compared
    made = fv.export_plans(found, data, ["onnx", "pt2:fp16"], images=8)
    assert [(row["plan"], row["format"], row["precision"]) for row in made.rows] == [
        *(("none", "onnx", "fp32"), (PLAN, "onnx", "fp32"), ("none", "pt2", "fp16"), (PLAN, "pt2", "fp16")),
    ]
    assert all(row["status"] == "ok" for row in made.rows), made.rows
    for row in made.rows:
        alone = row["plan"] == "none"
        assert (row["ratio"] is None) == alone
        assert row["milliseconds"] > 0
        assert 0 <= row["top1"] <= 100
        if row["precision"] == "fp32":
            assert row["top1"] == row["network_top1"]
            assert row["agreement"] == 1
    again = read_plan_exports(found.folder, found)
    assert [row["ratio"] for row in again.rows] == [row["ratio"] for row in made.rows]
    assert made.table().row_count == 4
    page = fv.report(found, data, images=1, audited=0).read_text()
    assert "As files" in page
    assert "pt2 fp16" in page


def test_a_file_that_fails_is_a_row(compared, tmp_path, monkeypatch):
    found, data = compared

    def refuse(*_, **__):
        raise FoveateError("no <b>form</b> for it")

    monkeypatch.setattr("foveate.studies.deployment.plan_exports.export", refuse)
    made = fv.export_plans(found, data, ["onnx"], folder=tmp_path)
    assert [row["status"] for row in made.rows] == ["failed", "failed"]
    page = fv.report(found, data, folder=tmp_path, images=1, audited=0).read_text()
    assert "failed: no &lt;b&gt;form" in page


@pytest.mark.parametrize(
    "target, message", [("onix", "there is no export format 'onix'"), ("pt2:int8", "pt2 is written in")]
)
def test_refused_before_anything_is_trained(target, message, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["compare", str(folder), "--plans", PLAN, "--export", target, "--output", str(tmp_path / "new")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_another_comparison_left_in_the_folder_is_not_shown(compared, tmp_path, monkeypatch):
    found, data = compared
    rows = [{"plan": PLAN, "run": "of-another-seed0-0123", "format": "onnx", "precision": "fp32", "status": "ok"}]
    write_csv(tmp_path / FILE, rows)
    assert read_plan_exports(tmp_path, found) is None
    assert "As files" not in fv.report(found, data, folder=tmp_path, images=1, audited=0).read_text()
    write_csv(tmp_path / FILE, [{key: value for key, value in rows[0].items() if key != "run"}])  # of an older version
    assert read_plan_exports(tmp_path, found) is None
    old = tmp_path / "exports" / "1_fp32.onnx"
    old.parent.mkdir()
    old.write_text("of another plan")

    def refuse(*_, **__):
        raise FoveateError("it cannot be written")

    monkeypatch.setattr("foveate.studies.deployment.plan_exports.export", refuse)
    fv.export_plans(found, data, ["onnx"], folder=tmp_path)
    assert not old.exists()
    again = read_plan_exports(tmp_path, found)
    assert [(row["plan"], row["run"]) for row in again.rows] == [(k, v[0]) for k, v in found.setup.runs.items()]
