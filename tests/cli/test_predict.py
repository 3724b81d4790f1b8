from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import foveate as fv
from foveate.cli import main
from foveate.model_info import update_pretrained_config

CLASSES = ("left", "right")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, as ``foveate train`` leaves it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("mobilenetv2_035", num_classes=2)
    update_pretrained_config(model, {"input_size": (3, 32, 32), "label_names": CLASSES})
    root = tmp_path_factory.mktemp("run")
    fv.save(model, root / "last")
    return root


def done(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert not ended.value.code


def test_lines_json_and_csv_say_the_same(run, folder, tmp_path, capsys):
    val = folder / "val"
    expected = [one.to_dict() for one in fv.predict(run / "last", val)]
    assert len(expected) == 16

    done("predict", run, val, "--top", "1")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{one['path']}: {one['prediction']} {one['probability']:.1%}" for one in expected]

    done("predict", run / "last", val / "left", val / "right", "--json")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected

    done("predict", run, val, "--output", tmp_path / "new" / "p.csv", "--batch-size", "5")
    said = capsys.readouterr()
    assert said.out == ""
    assert f"16 images predicted; written: {tmp_path / 'new' / 'p.csv'}" in said.err
    done("predict", run, val, "--output", "-", "--batch-size", "5", "--threads", "1")
    text = capsys.readouterr().out
    assert text == (tmp_path / "new" / "p.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["path", "prediction", "probability", *CLASSES]
    assert [(row["path"], row["prediction"]) for row in rows] == [(one["path"], one["prediction"]) for one in expected]
    assert all(abs(float(row["left"]) + float(row["right"]) - 1) < 1e-6 for row in rows)

    done("predict", run, val, "--output", tmp_path / "q.csv", "--json", "--copy-to", str(tmp_path / "c"))
    assert len(capsys.readouterr().out.splitlines()) == 16
    assert (tmp_path / "q.csv").exists()
    copies = {path.parent.name: 0 for path in (tmp_path / "c").rglob("*.png")}
    for path in (tmp_path / "c").rglob("*.png"):
        copies[path.parent.name] += 1
    counts = {name: sum(one["prediction"] == name for one in expected) for name in copies}
    assert copies == counts
    assert sum(copies.values()) == 16


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    return said[-1]


def test_bad_files_are_counted_and_strict_stops(run, folder, tmp_path, capsys):
    for k in range(25):
        (tmp_path / f"{k:02d}.jpg").write_bytes(b"x")
    image = folder / "val" / "left" / "0.png"
    done("predict", run, image, tmp_path, tmp_path / "gone.png")
    said = capsys.readouterr()
    assert said.out.startswith(f"{image}: ")
    assert said.err.count("not predicted: ") == 21
    assert "00.jpg is not an image" in said.err
    assert "not predicted: 6 more" in said.err
    assert "1 images predicted, 26 could not be" in said.err
    assert "00.jpg is not an image" in refused(capsys, "predict", run, tmp_path, image, "--strict")
    assert "no image could be predicted: " in refused(capsys, "predict", run, tmp_path)


def test_what_is_wrong_is_one_line(run, folder, tmp_path, capsys):
    image = folder / "val" / "left" / "0.png"
    assert "random weights, which predict nothing: add --pretrained" in refused(capsys, "predict", "resnet18", image)
    assert "random weights" in refused(capsys, "evaluate", "resnet18", folder)
    assert "no saved model in" in refused(capsys, "predict", tmp_path / "gone", image)
    assert "of no format that foveate exports" in refused(capsys, "predict", image, image)
    assert "no image" in refused(capsys, "predict", run, tmp_path / "gone.png")
    assert "both print to the terminal" in refused(capsys, "predict", run, image, "--json", "--output", "-")
    assert "is a folder: name a file in it" in refused(capsys, "predict", run, image, "--output", tmp_path)
    assert "top=0" in refused(capsys, "predict", run, image, "--top", "0")
    assert "read as images of" in refused(capsys, "predict", run, folder, "--copy-to", folder / "sorted")
    assert "end the name in .png" in refused(capsys, "evaluate", run, folder, "--confusion", tmp_path / "c.txt")
    (tmp_path / "other" / "cat").mkdir(parents=True)
    for k in range(2):
        Image.new("RGB", (9, 9)).save(tmp_path / "other" / "cat" / f"{k}.png")
    message = refused(capsys, "evaluate", run, tmp_path / "other")
    assert "classes (left, right) do not hold all of the data's (cat)" in message


def test_evaluate(run, folder, tmp_path, capsys):
    expected = fv.evaluate(run, folder)
    places = ["--csv", str(tmp_path / "c.csv"), "--confusion", str(tmp_path / "c.png")]
    done("evaluate", run, folder, *places)
    said = capsys.readouterr().out
    assert "val: 16 images, 2 classes of the model" in said
    assert f"top-1 {expected.top1:.2%}, top-2 100.00%, loss {expected.loss:.4f}" in said
    assert (tmp_path / "c.csv").read_text().startswith("class,images,recall,precision,f1\nleft,8,")
    with Image.open(tmp_path / "c.png") as drawn:
        assert np.asarray(drawn.convert("L")).std() > 1

    done("evaluate", run, folder, "--json", "--part", "all")
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["part"]) == (48, "all")
    assert found["top1"] == fv.evaluate(run, folder, part="all").top1
    assert np.sum(found["confusion"]) == 48

    done("evaluate", run, folder, "--csv", "-")
    assert capsys.readouterr().out == (tmp_path / "c.csv").read_text()


def test_classes_that_a_terminal_would_obey_and_many_of_them(tmp_path, capsys):
    names = ("[bold]a", "\x1b[31mb", *map(str, range(40)))
    model = timm.create_model("mobilenetv2_035", num_classes=42)
    update_pretrained_config(model, {"input_size": (3, 32, 32), "label_names": names})
    fv.save(model, tmp_path / "m")
    data = tmp_path / "data"
    for name in ("[bold]a", *map(str, range(40))):
        (data / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (9, 9)).save(data / name / f"{k}.png")
    done("evaluate", tmp_path / "m", data)
    said = capsys.readouterr().out
    assert "the 10 of 41 classes with the lowest F1; --csv FILE writes all" in said
    done("predict", tmp_path / "m", data / "0" / "0.png", "--top", "42")
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "[bold]a" in said


def test_a_reader_that_has_seen_enough_is_no_error(run, folder):
    command = [sys.executable, "-m", "foveate", "predict", run, folder, "--batch-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait() == 0
    assert "Error" not in said
