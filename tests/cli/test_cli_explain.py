"""``foveate explain``: files, folders and patterns; drawings and numbers."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png", "c.jpg"):
        Image.new("RGB", (40, 40), (90, 20, 200)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("none")
    return tmp_path / "photos"


@pytest.mark.parametrize("method", ["cam", "gradcam", "gradcam++", "hirescam"])
def test_a_folder(run, pictures, tmp_path, method):
    out = tmp_path / "drawn"
    code, said, err = run("explain", "test_resnet", pictures, "--method", method, "--output", out)
    assert code == 0, err
    assert sorted(file.name for file in out.iterdir()) == ["001_a.png", "002_b.png", "003_c.png"]
    assert said.count("photos") == 3
    assert "written: " in said


def test_a_pattern_and_numbers_alone(run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said, err = run(
        "explain",
        "test_resnet",
        "photos/*.png",
        "photos/c.jpg",
        "--method",
        "gradcam",
        "--npz",
        "m.npz",
        "--json",
    )
    assert code == 0, err
    found = json.loads(said)
    assert [row["image"] for row in found["predictions"]] == ["photos/a.png", "photos/b.png", "photos/c.jpg"]
    assert found["files"] == ["m.npz"]
    assert not (tmp_path / "explained").exists()
    with np.load("m.npz", allow_pickle=False) as arrays:
        assert arrays["names"].tolist() == ["a", "b", "c"]


def test_an_own_map_after_a_plan(run, pictures, tmp_path):
    arguments = [
        "--plan",
        "ulsam(groups=2) after layer2.0",
        "--output",
        tmp_path / "x.png",
        "--npz",
        tmp_path / "x.npz",
    ]
    code, _, err = run("explain", "test_resnet", pictures / "a.png", *arguments)
    assert code == 0, err
    assert (tmp_path / "x.png").exists()
    assert (tmp_path / "x.npz").exists()


def test_one_line_for_an_error(run, pictures):
    for arguments, words in (
        (["test_resnet", pictures / "*.gif", "--method", "cam"], "no image matches"),
        (["test_resnet", pictures], "no inserted attention"),
        (["test_vit", pictures, "--method", "cam"], "gradcam"),
    ):
        code, out, err = run("explain", *arguments)
        assert (code, out) == (2, "")
        assert words in err
        assert "Traceback" not in err


def test_the_class_token_of_a_vision_transformer(run, pictures, tmp_path):
    out = ("--output", tmp_path / "x.png", "--npz", tmp_path / "x.npz")
    for options, names in (
        (("--head", "2", "--layer", "blocks.0"), ["map: blocks.0.attn class token head 2/2"]),
        (("--rollout",), ["map: rollout to blocks.5.attn class token"]),
    ):
        code, _, err = run("explain", "test_vit", pictures / "a.png", *options, *out)
        assert code == 0, err
        with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
            assert [name for name in arrays if name.startswith("map: ")] == names
    code, _, err = run("explain", "test_vit", pictures / "a.png", "--head", "last", *out)
    assert code == 2
    assert "head='last': give the number of a head" in err
