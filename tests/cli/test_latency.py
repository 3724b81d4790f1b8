"""foveate latency: a table that fits the terminal, JSON, CSV, and errors."""

import csv
import io
import json

import pytest

QUICK = ("test_resnet", "--input-size", 64, "--rounds", 3, "--no-memory")


@pytest.fixture
def run(run, monkeypatch):
    """(exit code, stdout, stderr) of the command on a terminal of 80 columns."""

    def command(*arguments):
        monkeypatch.setenv("COLUMNS", "80")
        return run("latency", *arguments)

    return command


def test_a_table_with_what_differs(run):
    code, out, err = run(*QUICK, "--plan", "se after layer2", "--batch-size", 1, "--batch-size", 2, "--threads", 1)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in lines[1:3] if line.split()] != []
    assert max(map(len, lines)) <= 80
    assert "ratio" in out
    assert "Reference: the network without its plan" in out
    assert "threads 1" in out
    assert "dtype float32" in " ".join(out.split())


def test_without_a_reference(run):
    out = run(*QUICK)[1]
    assert "ratio" not in out
    assert "Reference" not in out


def test_json_and_csv(run, tmp_path):
    options = ("--reference", "test_resnet", "--memory-format", "contiguous", "--memory-format", "channels_last")
    file = tmp_path / "new" / "latency.csv"
    code, out, _ = run(*QUICK, *options, "--json", "--csv", file)
    found = json.loads(out)
    assert code == 0
    assert [row["memory_format"] for row in found["settings"]] == ["contiguous", "channels_last"]
    assert found["settings"][0]["ratio"] > 0
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [float(row["ratio"]) for row in rows] == [row["ratio"] for row in found["settings"]]
    printed = list(csv.DictReader(io.StringIO(run(*QUICK, "--csv", "-")[1])))
    assert printed[0]["batch_size"] == "1"


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--json", "--csv", "-"], "both print to the terminal"),
        (["--batch-size", "0"], "batch_size=0: write a whole number of at least 1"),
        (["--csv", f"{__file__}/latency.csv"], f"cannot write {__file__}/latency.csv"),
        (["--csv", "."], "--csv '.' is a folder: name a file in it"),
        (["--threads", "0"], "threads=0: write a whole number of at least 1"),
    ],
)
def test_errors_are_one_line(run, arguments, said):
    code, out, err = run(*QUICK, *arguments)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert out == ""
