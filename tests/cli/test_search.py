"""``foveate search`` and families on the command line."""

import json
import re
import shlex
from urllib.parse import unquote

import pytest

SMALL = ["--model", "test_resnet", "--epochs", "1", "--image-size", "32", "--batch-size", "16"]


def test_a_search_within_a_budget(run, folder, tmp_path):
    family = "se|identity replacing|after layer1.0"
    options = ["--budget", "macs=-10%", "parameters=1M", "--finalists", "1", "--seeds", "1", "--output", tmp_path]
    options += ["--page", tmp_path / "my page.md", "--limit", "20", "--command", "foveate search ..."]
    code, out, err = run("search", folder, *SMALL, "--family", family, *options, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert {row["plan"] for row in rows} == {"se replacing layer1.0", "identity replacing layer1.0"}
    assert [row["finalist"] for row in rows] == [True, False]
    (line,) = [line for line in err.splitlines() if line.startswith("to train the best: foveate ")]
    words = ["train", str(folder), *SMALL[:2], "--limit", "20", *SMALL[2:], "--plan", rows[0]["plan"]]
    assert shlex.split(line.removeprefix("to train the best: foveate ")) == words
    assert (tmp_path / "search.csv").is_file()
    assert (tmp_path / "comparison" / "report.html").is_file()
    page = (tmp_path / "my page.md").read_text()
    assert f"```\n{rows[0]['plan']}\n```" in page
    assert "foveate search ..." in page
    compared = (tmp_path / "my page_compared.md").read_text()
    targets = re.findall(r"\]\(([^)]+)\)", page + compared)
    assert len(targets) >= 5
    assert all(" " not in target and (tmp_path / unquote(target)).is_file() for target in targets)
    assert all(
        (tmp_path / name).is_file()
        for name in ("my page.csv", "my page_compared.md", "images/my page_compared_cost.svg")
    )
    code, out, _ = run("results", tmp_path / "comparison")
    assert code == 0
    assert rows[0]["plan"] in " ".join(out.split())


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--family", "se after #0", "--plan", "se after #0"], "search has no option --plan; did you mean --family?"),
        (["--family", "se after #0", "--budget", "macs"], "write NAME=VALUE, such as macs=-15%"),
        (["--family", "se after #0", "--budget", "mac=3"], "did you mean 'macs'"),
        (["--family", "se after #0", "--jobs", "0"], "--jobs 0: at least 1"),
        (["--family", "se after #0|", "--trials", "2"], "cannot read the family"),
        (["--family", "se after #0", "--on", "proceses:2"], "did you mean 'processes'"),
    ],
)
def test_errors_are_one_line_and_code_2(run, folder, tmp_path, arguments, said):
    code, _, err = run("search", folder, *SMALL, "--output", tmp_path, *arguments)
    assert code == 2
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_family_of_too_many_plans(run, folder, tmp_path):
    family = "se|cbam|bam after layer1.0|layer2.0"
    options = ["--plans", family, "--most-plans", "4", "--output", tmp_path]
    code, _, err = run("compare", folder, *SMALL, *options)
    assert code == 2
    assert "has 6 plans, and compare takes 4 at most" in err.splitlines()[-1]
