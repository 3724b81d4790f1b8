"""Names of classes, files and plans that a terminal, a table, a page or a spreadsheet could take for something else.

All commands that read images run in one process in the C locale with ASCII streams: no traceback, and the right bytes.
"""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import foveate as fv
from foveate.cli.app import app

# Some are not UTF-8, some are markup of rich, HTML or Markdown, formulas, mathematics, control characters.
CLASSES = (
    b"[red]",
    b"=1+1",
    b"<b>&amp;",
    b"a|b`c`",
    "n\u00e9".encode(),
    b"caf\xe9",
    b"$x^",
    b"new\nline",
    b"\x1b[31mx",
)
SHOWN = tuple(name.replace(b"\n", b"\\n").replace(b"\x1b", b"\\x1b") for name in CLASSES)
SET = "=set [red]<b>"
PLAN = "se(reduction=4) after blocks.2"
pytestmark = pytest.mark.slow(
    reason="it starts every command on names that no one has by accident",
    guards=("foveate/cli/", "foveate/data/", "foveate/io.py"),
)
SMALL = ("--image-size", "32", "--batch-size", "9")

RUN = r"""
import sys, traceback
from foveate.cli import main
for number, line in enumerate(open(sys.argv[1], "rb").read().split(b"\0\0")):
    command = [word.decode(sys.getfilesystemencoding(), "surrogateescape") for word in line.split(b"\0")]
    for stream in (sys.stdout, sys.stderr):
        stream.write("<<%d>>\n" % number)
        stream.flush()
    try:
        main(command)
    except SystemExit as ended:
        sys.stderr.write("exit %s\n" % (ended.code or 0))
    except BaseException:
        traceback.print_exc()
"""
WITHOUT_IMAGES = {"doctor", "cost", "latency", "sites", "results", "reproduce", "demo", "serve", "--help", "--version"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("hostile") / SET
    random = np.random.default_rng(0)
    for part, count in (("train", 2), ("val", 1)):
        for name in map(os.fsdecode, CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                stream = io.BytesIO()
                Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
                (root / part / name / f"{name}{number}.png").write_bytes(stream.getvalue())
    (root / "val" / os.fsdecode(b"<i>\xff.txt")).write_bytes(b"not used")
    return str(root)


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def ran(images, output) -> dict[str, tuple[bytes, str]]:
    """What each command wrote to stdout, and to stderr."""
    model, val, grid = str(output / "run" / "last"), f"{images}/val", str(output / "grid")
    train = ["train", images, "--model"]
    again = [*train, model, "--epochs", "0", *SMALL, "--json", "--output", str(output / "again")]
    train += ["test_efficientnet", "--plan", PLAN, "--epochs", "1", *SMALL, "--output", str(output / "run")]
    explain = ["explain", model, val, "--image-size", "32", "--output", str(output / "pictures")]
    audit = ["audit", model, images, "--image-size", "32"]
    compare = ["compare", images, "--model", "test_efficientnet", "--plans", PLAN, "--epochs", "1", "--seeds", "1"]
    search = ["search", images, "--model", "test_efficientnet", "--family", PLAN, "--epochs", "1", "--seeds", "0"]
    commands = {
        "data check": ["data", "check", images],
        "data check --json": ["data", "check", images, "--json"],
        "train": train,
        "train --json": again,
        "explain": [*explain, "--method", "gradcam", "--npz", str(output / "maps.npz")],
        "explain --json": [*explain, "--json"],
        "audit": audit,
        "audit --csv": [*audit, "--csv", "-"],
        "export": ["export", model, "--to", "pt2", "--data", images, "--output", str(output / "files"), "--no-time"],
        "search": [*search, *SMALL, "--output", str(output / "search")],
        "predict": ["predict", model, val, "--image-size", "32", "--copy-to", str(output / "copies")],
        "predict --json": ["predict", model, val, "--image-size", "32", "--json"],
        "predict --output": ["predict", model, val, "--image-size", "32", "--output", str(output / "predictions.csv")],
        "evaluate": ["evaluate", model, images, "--image-size", "32", "--confusion", str(output / "confusion.png")],
        "evaluate --json": ["evaluate", model, images, "--image-size", "32", "--json"],
        "evaluate --csv": ["evaluate", model, images, "--image-size", "32", "--csv", "-"],
        "compare": [*compare, *SMALL, "--output", grid],
    }
    file = output / "commands"
    file.write_bytes(b"\0\0".join(b"\0".join(os.fsencode(word) for word in words) for words in commands.values()))
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHONIO"))}
    ended = subprocess.run(
        [sys.executable, "-c", RUN, str(file)], capture_output=True, check=True, env=kept | plain, cwd=output
    )
    stdout, stderr = (
        [part.partition(b">>\n")[2] for part in text.split(b"<<")[1:] if part[:1].isdigit()]
        for text in (ended.stdout, ended.stderr)
    )
    assert len(stdout) == len(stderr) == len(commands)
    return {name: (o, e.decode("latin-1")) for name, o, e in zip(commands, stdout, stderr, strict=True)}


def test_every_command_that_reads_images_is_here(ran):
    commands = {name for name in app if not name.startswith("-")}
    assert commands - WITHOUT_IMAGES == {name.split()[0] for name in ran}


def test_no_traceback_and_the_code_of_success(ran):
    for name, (_, stderr) in ran.items():
        assert "Traceback" not in stderr, (name, stderr)
        assert stderr.rstrip().endswith("exit 0"), (name, stderr)


def test_the_right_bytes_and_no_control_characters(ran):
    out = ran["data check"][0]
    rows = [line.rsplit(None, 2)[0] for line in out.splitlines() if line.endswith(b"2    1")]
    assert sorted(rows) == sorted(SHOWN)
    assert b"val/<i>\xff.txt" in out
    for name in ("data check", "explain", "compare", "audit", "predict", "evaluate"):
        assert b"\x1b" not in ran[name][0], name
    for command in ("explain", "predict"):
        for name in (b"n\xc3\xa9", b"caf\xe9", b"[red]", b"new\\nline"):
            assert b"val/" + name + b"/" + name + b"0.png: " in ran[command][0]


def test_json_is_read_back(ran, images, output):
    found = json.loads(ran["data check --json"][0])
    assert {os.fsencode(row["class"]) for row in found["classes"]} == set(SHOWN)
    assert found["name"] == SET
    assert {os.fsencode(row["class"]) for row in json.loads(ran["train --json"][0])["classes"]} == set(SHOWN)
    assert len(json.loads(ran["explain --json"][0])["predictions"]) == len(CLASSES)
    assert {os.fsencode(row["class"]) for row in json.loads(ran["evaluate --json"][0])["classes"]} == set(SHOWN)
    assert len(ran["predict --json"][0].splitlines()) == len(CLASSES)
    assert all(json.loads(line)["prediction"] for line in ran["predict --json"][0].splitlines())
    kept = json.loads((output / "run" / "evaluation.json").read_text("utf-8"))
    assert {os.fsencode(row["class"]) for row in kept["classes"]} == set(SHOWN)
    model = fv.load(output / "run" / "last")
    assert {os.fsencode(name) for name in model.pretrained_cfg["label_names"]} == set(SHOWN)
    # What a process in the C locale called its classes, one in a UTF-8 locale calls the same.
    assert tuple(model.pretrained_cfg["label_names"]) == fv.open_data(images).classes


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.text += " ".join(value or "" for key, value in attrs if key == "alt")

    def handle_data(self, data):
        self.text += data


def test_the_report_shows_names_as_text(output):
    page = Tags()
    page.feed((output / "grid" / "report.html").read_text("utf-8", "surrogateescape"))
    assert not page.tags & {"b", "i", "red", "script"}
    assert SET in page.text


def test_csv_has_no_formula(ran):
    rows = list(csv.reader(io.StringIO(ran["audit --csv"][0].decode())))
    assert len(rows) == 2
    assert not any(cell.startswith(("=", "@")) for row in rows for cell in row)


def test_csv_of_predictions_and_classes_has_no_formula(ran, output):
    text = (output / "predictions.csv").read_text("utf-8", "surrogateescape")
    predicted = list(csv.reader(io.StringIO(text, newline="")))
    evaluated = list(csv.reader(io.StringIO(ran["evaluate --csv"][0].decode("utf-8", "surrogateescape"), newline="")))
    assert (len(predicted), len(evaluated)) == (len(CLASSES) + 1, len(CLASSES) + 1)
    assert all(len(row) == 3 + len(CLASSES) for row in predicted)
    assert not any(cell.startswith(("=", "@")) for row in (*predicted, *evaluated) for cell in row)


def test_copies_lie_in_folders_of_their_own(ran, output):
    copies = [path for path in (output / "copies").rglob("*") if path.is_file()]
    assert len(copies) == len(CLASSES)
    assert all(path.parent.parent == output / "copies" for path in copies)


# ---- labels of plans, which people choose

LABEL = "=cmd|' /c calc'!A0 [red]<b>`x`"


@pytest.fixture(scope="module")
def comparison(data_of_module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    recipe = fv.Recipe(epochs=0, image_size=32)
    plans = {LABEL: PLAN}
    return fv.compare("test_efficientnet", plans, data_of_module, recipe, 1, output=folder, progress=False)


@pytest.fixture(scope="module")
def data_of_module(folder):
    return fv.open_data(folder, limit=8)


def test_labels_on_the_terminal(comparison):
    console = Console(file=io.StringIO(), width=200)
    comparison.print(console)
    assert console.file.getvalue().count("[red]<b>`x`") >= 2


def test_labels_in_csv(comparison):
    rows = list(csv.DictReader((comparison.folder / "comparison.csv").read_text("utf-8").splitlines()))
    assert rows[1]["plan"] == f"'{LABEL}"


def test_labels_in_markdown_and_svg(comparison, tmp_path):
    files = fv.write_page(comparison, tmp_path / "page.md")
    page = files[-1].read_text("utf-8")
    assert "<b>" not in page.replace(r"\<b\>", "")
    line = next(line for line in page.splitlines() if line.startswith(r"| =cmd"))
    head = next(line for line in page.splitlines() if line.startswith("| plan |"))
    assert line.replace(r"\|", "").count("|") == head.count("|")
    for file in files:
        if file.suffix == ".svg":
            picture = Tags()
            picture.feed(file.read_text("utf-8"))
            assert "b" not in picture.tags


def test_labels_in_html(comparison, data_of_module):
    page = Tags()
    page.feed(fv.report(comparison, data_of_module, images=1, audited=0).read_text("utf-8"))
    assert "b" not in page.tags
    assert LABEL in page.text
