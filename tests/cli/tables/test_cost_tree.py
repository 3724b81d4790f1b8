"""foveate cost: a tree that fits the terminal, what the plan did, JSON, CSV."""

import csv
import io
import json
import re

import pytest

import foveate as fv

PLAN = "ulsam(groups=4) replacing blocks.4.1, blocks.4.2; se after blocks.5.2"


@pytest.fixture
def run(run, monkeypatch):
    """(exit code, stdout, stderr) of the command on a terminal of some columns."""

    def command(*arguments, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        return run("cost", *arguments)

    return command


def tree_of(out):
    """The lines before the totals, and the totals."""
    tree, totals, *_ = out.split("\n\n")
    return tree.splitlines(), totals.splitlines()


def line(lines, label):
    return next(found for found in lines if label in found)


def test_the_plan_is_shown_where_it_is(run):
    code, out, err = run("mobilenetv2_100", "--plan", PLAN)
    assert (code, err) == (0, "")
    tree, _ = tree_of(out)
    at = next(index for index, found in enumerate(tree) if " 4 Sequential" in found)
    wanted = ("- 1 InvertedResidual", "+ 1 ULSAM", "- 2 InvertedResidual", "+ 2 ULSAM")
    assert all(label in found for label, found in zip(wanted, tree[at + 1 :], strict=False))
    assert re.search(r"│   │       └── \+ foveate SE +3\.37k +3\.20k +0\.0%", "\n".join(tree))
    assert not any("conv_pw" in found for found in tree)


def test_numbers_and_shares(run):
    tree, totals = tree_of(run("mobilenetv2_100", "--plan", PLAN)[1])
    assert re.split(" {2,}", tree[0]) == ["module", "parameters", "MACs", "share", "element ops"]
    assert re.split(" {2,}", tree[1]) == ["EfficientNet", "3.27M", "255M", "100.0%", "18.8M"]
    assert re.split(" {2,}", line(tree, "classifier Linear"))[1:] == ["1.28M", "1.28M", "0.5%", "0"]
    assert re.split(" {2,}", totals[0]) == ["exact counting", "with the plan", "without", "difference", "paper"]
    assert re.split(" {2,}", line(totals, "MACs"))[:4] == ["MACs", "255,468,544", "300,774,272", "-45,305,728"]
    assert [re.split(" {2,}", found)[0] for found in totals[1:-1]] == [
        *("parameters", "MACs", "activations", "element operations", "bytes moved"),
        *("activation bytes, inference", "activation bytes, training"),
    ]


@pytest.mark.parametrize(
    "columns,last", [(120, "bytes"), (100, "bytes"), (80, "element ops"), (66, "share"), (50, "share")]
)
def test_every_line_fits_and_what_does_not_fit_is_left_out(run, columns, last):
    code, out, _ = run("mobilenetv2_100", "--plan", PLAN, columns=columns)
    tree, totals = tree_of(out)
    assert code == 0
    assert max(map(len, tree + totals)) <= columns
    assert tree[0].split("  ")[-1].strip() == last
    assert re.split(" {2,}", tree[1])[1:4] == ["3.27M", "255M", "100.0%"]


@pytest.mark.parametrize("depth", [0, 1, 2, 9])
def test_depth(run, depth):
    tree, _ = tree_of(run("test_resnet", "--input-size", 64, "--depth", depth)[1])
    for needs, label in ((1, "layer3 "), (2, "0 Bottleneck"), (3, "conv3 ")):
        assert any(label in found for found in tree) == (depth >= needs), label
    tree, _ = tree_of(run("test_resnet", "--input-size", 64, "--depth", depth, "--plan", "se after layer3.0")[1])
    assert any("+ foveate SE" in found for found in tree)
    assert any("fc1" in found for found in tree) == (depth == 9)


SMALL = ("mobilenetv2_035", "--input-size", 64)


def test_a_gate_and_a_head_are_shown_as_what_they_hold(run):
    plan = "cbam(start='identity') replacing blocks.2.1; ltpa as head on blocks.2, blocks.4, blocks.6"
    tree, _ = tree_of(run(*SMALL, "--depth", 4, "--plan", plan, columns=100)[1])
    drawn = "\n".join(tree)
    assert "+ 1 CBAM" in drawn
    assert "- classifier Linear" in drawn
    assert "+ classifier LearnToPayAttention" in drawn
    assert "+ classifiers ModuleList" in drawn
    for hidden in ("mechanism", "Gate", "HeadWrapper", "Identity"):
        assert hidden not in drawn


def test_what_was_replaced_and_added_is_said_in_numbers(run):
    plan = "se replacing blocks.2.1; ulsam after blocks.3.3; ltpa as head on blocks.2, blocks.4, blocks.6"
    said = run(*SMALL, "--plan", plan)[1].split("\n\n")[2].splitlines()
    model = fv.insert(fv.create_model("mobilenetv2_035"), plan, input_size=64)
    gone = {row.name: row for row in fv.dropped(model, 64)}
    rows = [re.split(" {2,}", found.strip()) for found in said[1:]]
    assert rows[0][:3] == ["blocks.2.1", "replaced InvertedResidual", f"-{gone['blocks.2.1'].params:,}"]
    assert rows[1][0] == "added SE"
    assert rows[2][:2] == ["blocks.3.3", "added ULSAM"]
    assert [row[:2] for row in rows[3:]] == [["classifier", "replaced Linear"], rows[4][:2]]
    assert rows[4][0] == "added LearnToPayAttention"
    assert max(map(len, said)) <= 80
    assert run(*SMALL)[1].count("\n\n") == 1


def test_time_adds_a_column(run):
    out = run(*SMALL, "--plan", "se replacing blocks.2.1", "--time")[1]
    tree, _ = tree_of(out)
    assert re.split(" {2,}", tree[0])[:5] == ["module", "parameters", "MACs", "share", "time"]
    assert re.split(" {2,}", tree[1])[4] == "100.0%"
    found = json.loads(run(*SMALL, "--time", "--json")[1])
    assert all(0 <= row["time_share"] <= 1 for row in found["modules"])
    assert "time_share" not in json.loads(run(*SMALL, "--json")[1])["modules"][0]
    code, _, err = run(*SMALL, "--time", "--counting", "paper")
    assert code == 2
    assert "count exactly" in err


def test_colours(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    out = run(*SMALL, "--plan", "se replacing blocks.2.1")[1]
    assert "\x1b[31m- 1" in out
    assert "\x1b[32m+ 1" in out


def test_json_has_every_number_and_every_module(run):
    found = json.loads(run("mobilenetv2_100", "--plan", PLAN, "--json")[1])
    model = fv.insert(fv.create_model("mobilenetv2_100"), PLAN)
    cost = fv.cost(model)
    assert found["plan"] == PLAN
    assert found["with_the_plan"]["macs"] == cost.macs
    assert found["without"]["element_ops"] == cost.baseline.element_ops
    assert found["difference"]["activation_bytes_training"] == (cost - cost.baseline).activation_bytes_training
    assert found["unsupported"] == found["uncounted"] == []
    names = [(row["name"], row["change"]) for row in found["modules"]]
    assert len(names) == len(set(names))
    assert names.index(("blocks.4.1", "removed")) < names.index(("blocks.4.1", "added"))
    rows = {(row["name"], row["change"]): row for row in found["modules"]}
    assert rows["", ""]["macs"] == cost.macs
    assert rows["blocks.4.1", "removed"]["kind"] == "InvertedResidual"
    names = {"plan", "counting", "cost", "unsupported", "uncounted", "modules"}
    assert set(json.loads(run("mobilenetv2_100", "--json")[1])) == names


def test_both_countings_in_one_table(run):
    """The paper's 2.77M and 269.08M beside the real modules' numbers; and no such column where both are the same."""
    plan = "ulsam(groups=4) replacing blocks.5.1, blocks.5.2"
    _, totals = tree_of(run("mobilenetv2_100", "--depth", 0, "--plan", plan)[1])
    assert re.split(" {2,}", totals[0])[-1] == "paper"
    assert re.split(" {2,}", line(totals, "parameters"))[1:] == ["2,866,496", "3,504,872", "-638,376", "2.7690M"]
    assert re.split(" {2,}", line(totals, "MACs"))[-1] == "269.0790M"
    assert totals[-1].strip() == "paper: as the compact-CNN papers count; without the plan 3.4000M and 300.0000M"
    found = json.loads(run("mobilenetv2_100", "--plan", plan, "--json")[1])
    assert found["with_the_plan"]["paper"] == {"params": 2_768_960, "macs": 269_079_040}
    assert found["without"]["paper"] == {"params": 3_400_000, "macs": 300_000_000}
    assert found["difference"]["paper"] == {"params": -631_040, "macs": -30_920_960}
    for arguments in ((*SMALL, "--plan", "timm:eca after blocks.2.1"), SMALL):
        assert "paper" not in run(*arguments)[1]


def test_long_numbers_are_shortened_and_not_broken(run):
    out = run("resnet50", "--input-size", 448, "--depth", 0, "--plan", "se after layer4.2")[1]
    _, totals = tree_of(out)
    assert max(map(len, totals)) <= 80
    assert re.split(" {2,}", line(totals, "MACs"))[1:3] == ["16.3511G", "16.3506G"]
    full = tree_of(run("resnet50", "--input-size", 448, "--depth", 0, "--plan", "se after layer4.2", columns=100)[1])[1]
    assert re.split(" {2,}", line(full, "MACs"))[1].replace(",", "").startswith("16351")


def test_csv(run, tmp_path):
    code, out, _ = run(*SMALL, "--plan", "se replacing blocks.2.1", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert rows[0]["kind"] == "EfficientNet"
    assert {row["change"] for row in rows} == {"", "added", "removed"}
    file = tmp_path / "new" / "cost.csv"
    code, drawn, _ = run(*SMALL, "--plan", "se replacing blocks.2.1", "--csv", file)
    assert code == 0
    assert file.read_text() == out
    assert "+ 1 SE" in drawn
    code, said, _ = run(*SMALL, "--csv", file, "--json")
    written = csv.DictReader(io.StringIO(file.read_text()))
    assert json.loads(said)["cost"]["params"] == int(next(written)["params"])


def test_paper_counting_has_totals_alone(run):
    code, out, _ = run("mobilenetv2_100", "--plan", PLAN, "--counting", "paper")
    assert code == 0
    assert "EfficientNet" not in out
    assert [re.split(" {2,}", found)[0] for found in out.splitlines()] == ["paper counting", "parameters", "MACs"]


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--depth", "-1"], "--depth -1: it is at least 0"),
        (["--json", "--csv", "-"], "both print to the terminal"),
        (["--counting", "paper", "--csv", "-"], "paper counting has totals only"),
        (["--csv", f"{__file__}/cost.csv"], f"cannot write {__file__}/cost.csv: {__file__} is not a folder"),
        (["--csv", ""], "--csv '' is a folder: name a file in it"),
        (["--csv", "/"], "--csv '/' is a folder: name a file in it"),
    ],
)
def test_what_cannot_be_printed(run, arguments, said):
    code, out, err = run("test_resnet", "--input-size", "64", *arguments)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert out == ""
