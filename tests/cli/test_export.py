"""``foveate export``: a row for each file, exit code 1 when one failed."""

import csv
import json

import pytest
import torch

import foveate as fv
from foveate.cli import main

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """As a training run leaves it: the model is in a folder of its own."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = fv.insert(fv.create_model("test_resnet", num_classes=2).eval(), "ulsam after layer2", input_size=64)
    fv.save(model, folder / "model_best")
    return folder


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return ended.value.code or 0


@pytest.mark.slow(
    reason="it exports twice; tests/exporters does so in every run",
    guards=(
        "foveate/exporters/",
        "foveate/cli/export.py",
    ),
)
def test_a_table_of_files(run_folder, folder, tmp_path, capsys):
    code = run(
        *("export", run_folder, "--to", "onnx", "pt2", "--precision", "fp32", "fp16", "--data", folder, "--size", "64"),
        *("--images", "4", "--batch", "1", "--no-time", "--example", "--output", tmp_path / "out"),
        *("--csv", tmp_path / "rows.csv", "--json"),
    )
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert code == 0, shown.err
    assert [(row["format"], row["precision"], row["status"]) for row in rows] == [
        *(("onnx", "fp32", "ok"), ("onnx", "fp16", "ok"), ("pt2", "fp32", "ok"), ("pt2", "fp16", "ok")),
    ]
    assert all(row["top1"] is not None and row["file"]["metadata"]["plan"] == "ulsam after layer2" for row in rows)
    with (tmp_path / "rows.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [row["path"] for row in rows]
    files = ["test_resnet_fp16.onnx", "test_resnet_fp16.pt2", "test_resnet_fp32.onnx", "test_resnet_fp32.pt2"]
    programs = {name: f"{name.replace('.', '_')}_example.py" for name in files}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*files, *programs.values()])
    for name, program in programs.items():
        assert repr(name) in (tmp_path / "out" / program).read_text()
    assert [row["file"]["example"].rpartition("/")[2] for row in rows] == [
        programs[row["path"].rpartition("/")[2]] for row in rows
    ]


def test_the_lines_alone_on_the_terminal(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_resnet_fp32.onnx").write_text("mine")
    given = ("export", run_folder, "--to", "onnx", "--size", "64", "--csv", "-", "--output", tmp_path)
    assert run(*given) == 1
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["format"] == "onnx"
    assert "overwrite" in row["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["test_resnet_fp32.onnx"]  # no file "-"
    assert run(*given, "--json") == 2
    assert "both print to the terminal" in capsys.readouterr().err


def test_what_fails_is_a_row_and_the_exit_code(run_folder, tmp_path, capsys):
    """The others are written all the same."""
    (tmp_path / "test_resnet_fp32.onnx").write_text("mine")
    code = run(
        *(
            "export",
            run_folder,
            "--to",
            "onnx",
            "pt2",
            "--size",
            "64",
            "--images",
            "2",
            "--no-time",
            "--output",
            tmp_path,
        )
    )
    shown = capsys.readouterr().out
    assert code == 1
    assert "failed" in shown
    assert "is there already" in shown
    assert (tmp_path / "test_resnet_fp32.onnx").read_text() == "mine"
    assert (tmp_path / "test_resnet_fp32.pt2").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--to", "tflight"], "there is no export format 'tflight'"),
        (["--to", "onnx", "--size", "big"], "--size 'big'"),
        (["--to", "onnx", "--batch", "many"], "--batch 'many'"),
        (["--to", "onnx", "--precision", "int8"], "int8"),
    ],
)
def test_one_line_for_each_mistake(run_folder, tmp_path, capsys, arguments, message):
    assert run("export", run_folder, "--output", tmp_path, *arguments) in (1, 2)
    shown = capsys.readouterr()
    assert message in shown.out + shown.err
    assert not list(tmp_path.iterdir())
