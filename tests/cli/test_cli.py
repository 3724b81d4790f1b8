"""The command line: the words of the functions, one line for an error, JSON where a program may read it."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from PIL import Image

import foveate as fv
from foveate.cli import main

cli_app = sys.modules["foveate.cli.app"]  # foveate.cli.app is the object in it

SMALL = ["--model", "test_resnet", "--epochs", "1", "--image-size", "32", "--batch-size", "8"]


def test_help_names_every_verb_and_imports_nothing_large():
    """What keeps it quick, on a busy machine, too: nothing is timed here."""
    code = "import sys, foveate.cli; sys.argv = ['foveate', '--help']; import atexit;"
    code += "atexit.register(lambda: print(*{name.split('.')[0] for name in sys.modules})); foveate.cli.main()"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    imported = set(said.splitlines()[-1].split())
    assert {"foveate", "cyclopts"} <= imported
    assert not imported & {"torch", "torchvision", "timm", "accelerate", "numpy", "matplotlib", "PIL", "pyarrow"}
    for verb in ("sites", "cost", "train", "compare", "explain", "demo"):
        assert verb in said


def test_version(run):
    assert run("--version")[1].strip() == fv.__version__


def test_sites(run):
    code, out, _ = run("sites", "mobilenetv2_100", "--json")
    found = json.loads(out)
    assert code == 0
    assert found[0]["name"] == "blocks.0"
    code, out, _ = run("sites", "mobilenetv2_100")
    assert "blocks.5.2" in out


def test_cost_of_the_papers_row(run):
    plan = "ulsam(groups=4) replacing blocks.4.1, blocks.4.2, blocks.5.1, blocks.5.2"
    code, out, _ = run("cost", "mobilenetv2_100", "--plan", plan, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["with_the_plan"]["params"], found["with_the_plan"]["macs"]) == (2_630_936, 224_544_384)
    _, out, _ = run("cost", "mobilenetv2_100", "--plan", plan, "--counting", "paper", "--json")
    assert json.loads(out)["with_the_plan"] == {"params": 2_537_792, "macs": 223_770_112, "activations": 0}
    _, out, _ = run("cost", "mobilenetv2_100", "--plan", plan)
    assert "224,544,384" in out


def test_train_then_explain_what_was_kept(run, folder, tmp_path):
    output = tmp_path / "run"
    code, out, _ = run(
        "train", folder, *SMALL, "--plan", "ulsam(groups=2) after layer2.0", "--output", output, "--json"
    )
    assert code == 0
    assert 0 <= json.loads(out)["top1"] <= 1
    picture = folder / "val" / "left" / "0.png"
    code, out, _ = run("explain", output / "last", picture, "--output", tmp_path / "map.png")
    assert code == 0
    assert out.startswith((f"{picture}: left", f"{picture}: right"))
    with Image.open(tmp_path / "map.png") as drawn:
        assert drawn.width > 100
    code, _, err = run("train", folder, *SMALL, "--output", output)
    assert code == 2
    assert "resume" in err
    plan = ["--plan", "ulsam(groups=2) after layer2.0"]
    assert run("train", folder, *SMALL, *plan, "--output", output, "--resume")[0] == 0


def test_compare(run, folder, tmp_path):
    output, plan = tmp_path / "grid", "se after layer2.0"
    command = ["compare", folder, *SMALL, "--plans", plan, "--seeds", "1", "--output", output, "--json"]
    code, out, err = run(*command)
    assert code == 0, err
    rows = json.loads(out)
    assert [row["plan"] for row in rows] == ["none", plan]
    assert (output / "report.html").exists()
    result = next(output.glob("runs/none-*/result.json"))
    before = result.stat().st_mtime_ns
    assert json.loads(run(*command)[1])[1]["difference"] == rows[1]["difference"]  # it goes on: nothing is left
    assert result.stat().st_mtime_ns == before
    code, out, err = run("results", output, "--page", tmp_path / "page.md", "--command", "foveate compare ...")
    assert code == 0
    assert "one seed, at least two are needed" in out
    assert "foveate compare ..." in (tmp_path / "page.md").read_text()


def test_compare_takes_a_recipe_by_name(run, folder, tmp_path):
    command = ["compare", folder, *SMALL, "--plans", "se after layer2.0", "--seeds", "1", "--output", tmp_path / "grid"]
    code, _, err = run(*command, "--recipe", "short", "--learning-rate", "0.0123")
    assert code == 0, err
    recipe = yaml.safe_load(next(tmp_path.glob("grid/runs/none-*/attempt.*/recipe.yaml")).read_text())
    assert recipe["learning_rate"] == 0.0123
    assert recipe["gradient_clip"] == fv.open_recipe("short").gradient_clip != fv.Recipe().gradient_clip
    code, _, err = run(*command, "--recipe", "shrt")
    assert code == 2
    assert "short" in err


def test_two_processes_compare(run, folder, tmp_path):
    output = tmp_path / "grid"
    code, _, err = run(
        "compare",
        folder,
        *SMALL,
        "--plans",
        "se after layer2.0",
        "--seeds",
        "2",
        "--output",
        output,
        "--jobs",
        "2",
    )
    assert code == 0, err
    assert len(list(output.glob("runs/*/result.json"))) == 4


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["cost", "mobilnetv2_100"], "did you mean 'mobilenetv2_100'"),
        (["cost", "mobilenetv2_100", "--plan", "ulsm after blocks.4.2"], "did you mean 'ulsam'"),
        (["cost", "mobilenetv2_100", "--plan", "ulsam(grups=2) after blocks.4.2"], "did you mean 'groups'"),
        (["cost", "mobilenetv2_100", "--plan", "ulsam after blocks.4.9"], "did you mean 'blocks.4.2'"),
        (["cost", "mobilenetv2_100", "--plan", "ulsam(groups=5) after blocks.4.2"], "take groups from 1, 2, 4, 8, 16"),
        (["cost", "mobilenetv2_100", "--plan", "ulsam replacing blocks.4.0"], "blocks that keep it: blocks.1.1"),
        (["train", "no/such/folder"], "no/such/folder"),
        (["results", "no/such/folder"], "holds no comparison"),
        (["compare", "elpv", "--plans", "se after blocks.4.2", "--jobs", "0"], "at least 1"),
        (["sites", "no/such/model"], "no saved model"),
    ],
)
def test_a_users_error_is_one_line_and_code_2(run, arguments, said):
    code, _, err = run(*arguments)
    assert code == 2
    assert said in err
    assert err.strip().count("\n") == 0
    assert "Traceback" not in err


def test_an_unknown_option_is_code_2(run):
    assert run("cost", "mobilenetv2_100", "--contng", "exact")[0] == 2


def test_bad_images(run, folder, tmp_path):
    import shutil

    broken = tmp_path / "data"
    shutil.copytree(folder, broken)
    whole = (broken / "train" / "left" / "3.png").read_bytes()
    (broken / "train" / "left" / "3.png").write_bytes(whole[: len(whole) // 2])
    code, _, err = run("train", broken, *SMALL, "--output", tmp_path / "a")
    assert code == 2
    assert "3.png" in err
    code, _, err = run("train", broken, *SMALL, "--output", tmp_path / "b", "--on-bad-image", "skip")
    assert code == 0
    assert "3.png" in err
    (broken / "train" / "empty").mkdir()
    code, _, err = run("train", broken, *SMALL, "--output", tmp_path / "c")
    assert code == 2
    assert "empty" in err


@pytest.mark.parametrize("command,kept", [("train", True), ("compare", True), ("demo", True), ("sites", False)])
def test_programs_that_train_keep_what_they_free(monkeypatch, command, kept):
    asked = []
    monkeypatch.setattr(cli_app, "keep_freed_memory", lambda: asked.append(command))
    monkeypatch.setattr(cli_app, "app", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["foveate", command])
    main()
    assert bool(asked) is kept
    main([command])  # in a caller's process
    assert len(asked) == kept


@pytest.mark.parametrize("busy,own,expected", [(0.1, None, None), (0.5, None, "PASSIVE"), (0.5, "ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_on_a_busy_machine(monkeypatch, run, busy, own, expected):
    monkeypatch.setattr(cli_app, "_busy", lambda: busy)
    monkeypatch.setenv("OMP_WAIT_POLICY", own or "")
    if own is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    run("sites", "--help")  # computes nothing
    assert os.environ.get("OMP_WAIT_POLICY") == own
    monkeypatch.setattr(sys, "platform", "linux")
    run("train", "--help")  # decides in its loop
    assert os.environ.get("OMP_WAIT_POLICY") == own
    run("audit", "--help")
    assert os.environ.get("OMP_WAIT_POLICY") == expected


def test_where_the_system_does_not_count_waits_a_command_decides_at_its_start(monkeypatch, run):
    monkeypatch.setattr(cli_app, "_busy", lambda: 0.5)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    run("train", "--help")
    assert os.environ.get("OMP_WAIT_POLICY") == "PASSIVE"


def test_how_busy_the_cores_are(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    lines = ["cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1\n", "cpu  160 0 110 815 15 0 0 0 0 0\ncpu0 1 1\n"]
    monkeypatch.setattr(cli_app, "_STAT", stat)
    monkeypatch.setattr(time, "sleep", lambda _: stat.write_text(lines[1]))
    stat.write_text(lines[0])
    assert cli_app._busy() == pytest.approx(0.7)
    stat.unlink()  # another system
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (8.0, 0.0, 0.0))
    assert cli_app._busy() == 2.0
