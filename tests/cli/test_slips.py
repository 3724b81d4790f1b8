"""What the command line says to slips: one line on stderr that names what exists, and nothing is lost."""

import dataclasses
import io
import json
import shlex
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console

import foveate as fv
from foveate.cli import main
from foveate.cli.app import app
from foveate.cli.options import DataOptions
from foveate.cli.process.usage_errors import nearest
from foveate.studies.reporting.terminal_table import terminal_table

SMALL = "--image-size 32 --batch-size 8"


def run(capsys, line):
    """(exit code, stdout, stderr) of a command line in this process."""
    try:
        main(shlex.split(line))
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    said = capsys.readouterr()
    return code, said.out, said.err


# What is typed, and what the line that answers it holds. The data that is named does not exist: nothing looks for it.
SLIPS = {
    "trian": ["there is no command 'trian'", "the nearest first: train, ", "doctor", "reproduce"],
    "sties mobilenetv2_100": ["there is no command 'sties'", "the nearest first: sites, "],
    "--vers": ["foveate has no option --vers; did you mean --version?"],
    "--zzzz": ["foveate has no option --zzzz (foveate --help"],
    "doctor now": ["doctor has no place for 'now' (foveate doctor --help"],
    "serve nowhere": ["there is no folder 'nowhere'"],
    "serve --port 99999": ["port 99999", "ports are 1 to 65535"],
    "predict nowhere images": ["'nowhere' is not a folder that foveate saved"],
    "explain test_resnet nowhere.png": ["no image nowhere.png"],
    "export test_resnet --to onxx --output o": ["no export format 'onxx'; did you mean 'onnx'?"],
    "export test_resnet --to pt2 --output o --keep attention": ["--keep attention is for 8 bits: add --precision int8"],
    "export test_resnet --to pt2 --output o --precision fp32 fp16 --keep none": ["--keep none is for 8 bits"],
    "export test_resnet --to pt2 --output o --python python3": ["--python is for litert: add --to litert"],
    "export test_resnet --to pt2 --output o --no-check --keep-failed": ["--keep-failed is for a file that failed"],
    "search nowhere --family 'se after a' --budget macs=-15% macs=-50%": [
        "--budget has macs=-15% and macs=-50%: write each name once"
    ],
    "search nowhere --family 'se after a' --budget =3": ["--budget =3: write NAME=VALUE, such as macs=-15%"],
    "cost test_resnet --plan 'ulsm after layer2.0'": ["no mechanism is called 'ulsm'; did you mean 'ulsam'?"],
    "cost test_resnet --plan 'se after layer9'": ["no site 'layer9'; did you mean 'layer"],
    "reproduce ulsm": ["no table is called 'ulsm'; there are: "],
    "data chek nowhere": ["there is no command 'data chek'", "foveate data --help"],
    "train nowhere --lr 0.1": ["train has no option --lr; did you mean --learning-rate?"],
    "train nowhere --learn 0.1": ["train has no option --learn; did you mean --learning-rate"],
    "train nowhere --batchsize=8": ["train has no option --batchsize; did you mean --batch-size?"],
    "train nowhere --zzzz": ["train has no option --zzzz (foveate train --help"],
    "train nowhere --epochs two": ["--epochs", "two"],
    "train nowhere --optimiser adamx": ["no optimiser is called 'adamx'", "did you mean 'adam"],
    "train nowhere --optimiser adahessian": ["'adahessian' needs second derivatives"],
    "train nowhere --model test_resne": ["'test_resne'", "'test_resnet'"],
    "train nowhere --model test_resnet --plan 'se aftre layer2.0'": ["'aftre' is not a verb", "'after'"],
    "train nowhere --epochs -1": ["recipe: epochs=-1 must be at least 0"],
    "cost": ["cost needs MODEL"],
    "cost mobilnetv2_100": ["'mobilnetv2_100'", "did you mean 'mobilenetv2_100'"],
    "cost test_resnet se after layer2.0": ["cost has no place for 'se after layer2.0'", "in quotes"],
    "cost test_resnet --depth": ["--depth lacks its value"],
    "cost test_resnet --counting exat": ["--counting", "exact", "paper"],
    "cost test_resnet --no-json": ["cost has no option --no-json; did you mean --json?"],
    "cost test_resnet --input-size 32 --input-size 64": ["--input-size"],
    "compare nowhere": ["compare needs plans", "--protocol FILE"],
    "compare nowhere --plan 'se after layer2.0'": ["compare has no option --plan; did you mean --plans?"],
    "compare nowhere --plans 'se after layer2.0' --plan x": ["compare has no option --plan; did you mean --plans?"],
    "compare nowhere --empty-plans": ["compare has no option --empty-plans", "--plans"],
    "compare nowhere --model test_resnet --plans 'se aftre layer2.0'": ["'aftre' is not a verb", "'after'"],
    "compare nowhere --model test_resne --plans 'se after layer2.0'": ["'test_resne'", "'test_resnet'"],
    "compare nowhere --model test_resnet --plans 'se after a' --optimiser adamx": ["no optimiser is called 'adamx'"],
    "train nowhere --task classify --head nosuch": ["--head is for a new segmentation or detection", "leave it out"],
    "train nowhere --output-stride 7": ["--output-stride is for a new segmentation or detection", "leave it out"],
    "compare nowhere --model test_resnet --plans 'se after layer2.0' --head nosuch": ["--head is for a new segment"],
    "train nowhere --model . --pretrained": [
        "--pretrained: . is a saved network with weights of its own: leave it out"
    ],
    "compare nowhere --model . --pretrained --plans 'se after a'": ["--pretrained: . is a saved network"],
    "search nowhere --model . --pretrained --family 'se after a'": ["--pretrained: . is a saved network"],
    "predict . images --pretrained": ["--pretrained: . has weights of its own: leave it out"],
    "evaluate . nowhere --pretrained": ["--pretrained: . has weights of its own: leave it out"],
    "train nowhere --model test_resnet --start identity": ["--start is for the attention that --plan inserts"],
    "audit nowhere nothing --csv .": ["--csv '.' is a folder: name a file in it"],
    "export test_resnet --to onnx --output o --csv .": ["--csv '.' is a folder: name a file in it"],
    "export test_resnet --to onnx --output o --size ²": ["--size '²': write a side in pixels"],
    "export test_resnet --to onnx --output o --batch ²": ["--batch '²': write a number of images, or dynamic"],
    "evaluate nowhere nothing --confusion x.bmp": ["--confusion x.bmp: end the name in .png, .svg or .pdf"],
    f"results {shlex.quote(__file__)}": ["holds no comparison: name the --output of foveate compare"],
    "search nowhere --family 'se|cbam aftre a' --model test_resnet": ["'aftre' is not a verb"],
}


@pytest.mark.parametrize("line", SLIPS)
def test_a_slip_is_answered_in_one_line(capsys, line):
    code, out, err = run(capsys, line)
    assert code == 2
    assert out == ""
    assert err.startswith("foveate: ")
    assert err.count("\n") == 1
    for words in SLIPS[line]:
        assert words in err, err


# Of those above, some that ask a terminal how wide it is, or a network what it has.
LONGER = ("trian", "--vers", "train nowhere --lr 0.1", "cost mobilnetv2_100", "serve nowhere", "compare nowhere")


@pytest.mark.parametrize("columns", ["40", "72"])
@pytest.mark.parametrize("line", LONGER)
def test_a_narrow_or_plain_terminal_gets_the_same_line(capsys, monkeypatch, line, columns):
    usual = run(capsys, line)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    assert run(capsys, line) == usual
    assert "\x1b" not in usual[2]


def test_who_stops_reading_is_not_answered_by_a_traceback():
    command = [sys.executable, "-m", "foveate", "cost", "test_resnet", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert said == ""
    assert process.returncode == 0  # as predict does


def test_an_unknown_command_is_answered_by_all_of_them(capsys):
    _, _, err = run(capsys, "expalin")
    listed = err.strip().rpartition("first: ")[2].split(", ")
    assert listed[0] == "explain"
    assert set(listed) == {name for name in app if not name.startswith("-")}


def test_short_forms_and_beginnings_are_near():
    names = ["--learning-rate", "--learning-rates", "--loss", "--limit"]
    assert nearest("--lr", names)[0] == "--learning-rate"
    assert nearest("--li", names)[0] == "--limit"
    assert nearest("--", names) == names


def test_versions_and_completion(capsys):
    assert run(capsys, "-V")[:2] == (0, f"{fv.__version__}\n")
    assert "--install-completion" in run(capsys, "--help")[1]


def _commands():
    for name in app:
        if not name.startswith("-"):
            inside = [part for part in app[name] if not part.startswith("-")]
            yield from (f"{name} {part}" for part in inside) if inside else (name,)


def _options(command):
    """The name of every option and positional, as often as it stands for one."""
    parsed = app
    for word in command.split():
        parsed = parsed[word]
    return [name for argument in parsed.assemble_argument_collection() for name in argument.names if name != "*"]


@pytest.mark.parametrize("command", list(_commands()))
def test_help_has_an_example_that_can_be_read_and_no_option_that_is_refused(capsys, command):
    _, out, _ = run(capsys, f"{command} --help")
    text = " ".join(out.replace("\n", " ").split())
    example = text.partition("Example: foveate ")[2].partition(" ╭─")[0]
    assert example.startswith(command)
    app.parse_args(shlex.split(example), exit_on_error=False, print_error=False)
    assert "--empty-" not in text
    assert "--no-json" not in text
    assert ("--plan" in _options(command)) == (command in ("cost", "train", "explain", "export", "latency"))


@pytest.mark.parametrize("command", [name for name in _commands() if "--csv" in _options(name)])
def test_a_table_of_every_command_that_has_one_may_go_to_the_terminal(capsys, command):
    text = " ".join(run(capsys, f"{command} --help")[1].replace("│", " ").split())
    assert '"-" prints them, and nothing else' in text
    example = text.partition("Example: foveate ")[2].partition(" ╭─")[0]
    _, bound, _ = app.parse_args([*shlex.split(example), "--csv", "-"], exit_on_error=False, print_error=False)
    assert bound.arguments["csv"] == "-"


@pytest.mark.parametrize("command", list(_commands()))
def test_no_two_options_of_a_command_have_one_name(command):
    names = _options(command)
    assert sorted(names) == sorted(set(names))


def test_workers_of_an_executor_are_not_those_that_load_images():
    line = "compare d --plans 'se after a' --on processes:2 --on-workers 3 --workers 1"
    _, bound, _ = app.parse_args(shlex.split(line), exit_on_error=False, print_error=False)
    assert (bound.arguments["workers"], bound.arguments["fields"].workers) == (3, 1)


def test_what_is_on_can_be_turned_off():
    for line in ("latency m --no-memory", "export m --to onnx --output o --no-check --no-time"):
        _, bound, _ = app.parse_args(shlex.split(line), exit_on_error=False, print_error=False)
        assert [value for value in bound.arguments.values() if value is False]
    _, bound, _ = app.parse_args(["train", "d", "--no-cache", "--no-sync-bn"], exit_on_error=False, print_error=False)
    assert (bound.arguments["fields"].cache, bound.arguments["fields"].sync_bn) == (False, False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of images of two classes, and a run on it."""
    root = tmp_path_factory.mktemp("slips")
    for part in ("train", "val"):
        for number, name in enumerate(("beagle", "boxer")):
            (root / "dogs" / part / name).mkdir(parents=True)
            for n in range(4):
                Image.new("RGB", (32, 32), (200 * number, 40 * n, 90)).save(root / "dogs" / part / name / f"{n}.png")
    data = fv.open_data(root / "dogs")
    model = fv.create_model("test_resnet", num_classes=2)
    fv.fit(model, data, fv.Recipe(epochs=1, image_size=32, batch_size=4), output=root / "run", progress=False)
    return root


def test_more_epochs_are_a_new_run_from_the_last(capsys, trained):
    run_folder = trained / "run"
    before = {file: file.stat().st_mtime_ns for file in run_folder.rglob("*") if file.is_file()}
    line = f"train {trained}/dogs --model test_resnet --epochs 2 --image-size 32 --batch-size 4"
    code, _, err = run(capsys, f"{line} --output {run_folder} --resume")
    assert code == 2
    last = err.splitlines()[-1]
    assert "recipe.epochs is 1 there and 2 now" in last
    assert f"--model {run_folder / 'last'}" in last
    assert {file: file.stat().st_mtime_ns for file in run_folder.rglob("*") if file.is_file()} == before
    code, _, err = run(capsys, f"{line} --model {run_folder / 'last'} --output {trained / 'longer'}".replace(
        "--model test_resnet ", ""
    ))  # fmt: skip
    assert code == 0, err


def test_explain_takes_a_class_by_name(capsys, trained):
    line = f"explain {trained}/run/last {trained}/dogs/val/boxer/0.png --method gradcam --output {trained}/map.png"
    code, out, err = run(capsys, f"{line} --target beagle")
    assert code == 0, err
    assert "map.png" in out
    code, _, err = run(capsys, f"{line} --target beagel")
    assert code == 2
    assert "'beagle'" in err


# A value other than the default for each option of how data is read.
READING = {
    "--on-bad-image": "skip",
    "--allow-empty": None,
    "--val-fraction": 0.9,
    "--split-seed": 1,
    "--limit": 3,
    "--parts": "train:test",
}


def test_options_of_data_without_data_are_refused(capsys, tmp_path):
    assert READING.keys() == {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(DataOptions)}
    for option, value in READING.items():
        given = option if value is None else f"{option} {value}"
        code, out, err = run(capsys, f"export test_resnet --to pt2 --output {tmp_path}/o {given}")
        assert (code, out) == (2, "")
        assert f"{option} is for the images of --data: add --data, or leave it out" in err
    assert not list(tmp_path.iterdir())


def test_what_random_weights_say_is_said_to_be_nothing(capsys, trained):
    """As predict refuses them."""
    picture = f"{trained}/dogs/val/boxer/0.png"
    words = "random weights, which predict nothing: add --pretrained"
    code, _, err = run(capsys, f"predict test_resnet {picture}")
    assert (code, words in err) == (2, True)
    line = f"{picture} --method gradcam --output {trained}/map.png --json"
    code, out, err = run(capsys, f"explain test_resnet {line}")
    assert code == 0
    assert json.loads(out)["predictions"]
    assert words in err
    code, _, err = run(capsys, f"explain {trained}/run/last {line}")
    assert (code, words in err) == (0, False)
    line = f"--to pt2 --size 32 --images 1 --no-time --output {trained}/exported"
    code, _, err = run(capsys, f"export test_resnet {line}")
    assert (code, words in err) == (0, True)
    code, _, err = run(capsys, f"export {trained}/run/last {line} --overwrite")
    assert (code, words in err) == (0, False)


@pytest.mark.parametrize("width", [40, 60, 72, 80, 120])
def test_a_narrow_terminal_keeps_the_plans(width):
    labels = ("none", "ulsam(groups=4) after blocks.5.2, blocks.5.3, blocks.6.0")
    columns = {"params": ["1.000M"] * 2, "top-1 %": ["50.1"] * 2, "difference [95%]": ["+1.0 [-2.0, +4.0]"] * 2}
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None)
    leave_out = ("params", "difference [95%]")
    console.print(terminal_table(labels, columns, title="dogs", leave_out=leave_out, console=console))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in file.getvalue()
    for word in labels[1].split():
        assert word in file.getvalue()
    assert "50.1" in file.getvalue()
    assert ("+4.0]" in file.getvalue()) == (width >= 60)
