"""Where results cannot be written, each command that has ``--output`` says so in one line, before any work."""

import pytest
from PIL import Image

import foveate as fv
from foveate.cli.app import _COMMANDS, app

# For each command a line that would work; {data}, {model} and {output} are put in.
SMALL = "--model test_resnet --epochs 1 --image-size 32 --batch-size 8"
LINES = {
    "compare": f"compare {{data}} --plans=SE {SMALL} --seeds 1",
    "demo": "demo --quick",
    "explain": "explain test_resnet {data}/val/left/0.png --method cam",
    "export": "export test_resnet --to pt2 --size 32 --images 1 --no-time",
    "predict": "predict test_resnet {data}/val/left --image-size 32",
    "search": f"search {{data}} --family=SE {SMALL} --seeds 1 --trials 1",
    "train": f"train {{data}} {SMALL}",
}


def has_output(command):
    return any("--output" in each.names for each in app[command].assemble_argument_collection())


def test_every_command_with_an_output_is_here():
    assert {command for command in _COMMANDS if command != "data" and has_output(command)} == set(LINES)


@pytest.mark.parametrize("below", ["", "/below", "/below/it"])
@pytest.mark.parametrize("command", LINES)
def test_an_output_that_is_a_file(command, below, run, folder, tmp_path, monkeypatch):
    if command == "demo":
        monkeypatch.setattr("foveate.studies.demo.open_data", lambda *_, **__: fv.open_data(folder))
    if command == "predict" and not below:
        pytest.skip("its output is a file")
    taken = tmp_path / "taken"
    taken.write_text("mine")
    words = [word.format(data=folder).replace("SE", "se after layer2.0") for word in LINES[command].split()]
    code, out, err = run(*words, "--output", f"{taken}{below}")
    assert code == (1 if command == "export" else 2), err
    said = " ".join((err + out).split())  # export says it in its table
    assert "Traceback" not in said
    assert "taken" in said
    assert any(words in said for words in ("is a file", "is not a folder"))
    assert taken.read_text() == "mine"


def test_a_level_of_messages_that_does_not_exist(run, monkeypatch):
    monkeypatch.setenv("FOVEATE_LOG", "verbose")
    code, out, err = run("sites", "test_resnet")
    assert (code, out) == (2, "")
    assert err == "foveate: FOVEATE_LOG='verbose' is not a level; there are: DEBUG, INFO, WARNING, ERROR, CRITICAL\n"


def test_pictures_of_masks_need_a_folder(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    model = fv.create_segmenter("test_resnet", classes=("a", "b"))
    with pytest.raises(fv.FoveateError, match="taken: it is a file"):
        fv.predict(model, tmp_path / "a.png").write(taken)
