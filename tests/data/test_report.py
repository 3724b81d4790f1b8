"""foveate data check: everything that is wrong is listed, and nothing else."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

import foveate as fv
from foveate.cli import main
from foveate.data import check_data


@pytest.fixture
def spoiled(plant, picture, tmp_path):
    root = plant({"train/cat": 3, "train/dog": 1, "val/cat": 1, "val/dog": 1})
    (root / "train/empty").mkdir()
    (root / "train/dog/0.jpg").write_bytes(picture(7))
    (root / "val/cat/0.jpg").write_bytes(picture(8))
    (root / "val/dog/0.jpg").write_bytes(picture(9))
    whole = picture(20, side=60)
    (root / "train/dog/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train/dog/text.jpg").write_bytes(b"hello")
    (root / "train/dog/zero.jpg").write_bytes(b"")
    (root / "val/dog/leak.jpg").write_bytes((root / "train/dog/0.jpg").read_bytes())
    (root / "train/dog/same.jpg").write_bytes((root / "train/cat/1.jpg").read_bytes())
    image, stream = Image.open(io.BytesIO(picture(8))), io.BytesIO()
    image.save(stream, "PNG")
    (root / "val/cat/again.png").write_bytes(stream.getvalue())
    return root


def test_all_is_found(spoiled):
    found = check_data(spoiled)
    assert found.counts == (("cat", 3, 2), ("dog", 5, 2), ("empty", 0, 0))
    assert [image for image, _ in found.bad] == [f"train/dog/{name}.jpg" for name in ("cut", "text", "zero")]
    assert all(image in reason and "\n" not in reason for image, reason in found.bad)
    assert set(map(frozenset, found.same_bytes)) == {
        frozenset({"train/dog/0.jpg", "val/dog/leak.jpg"}),
        frozenset({"train/cat/1.jpg", "train/dog/same.jpg"}),
    }
    assert found.same_pixels == (("val/cat/0.jpg", "val/cat/again.png"),)
    assert found.leaks == (("train/dog/0.jpg", "val/dog/leak.jpg"),)
    assert found.two_classes == (("train/cat/1.jpg", "train/dog/same.jpg"),)
    assert not found.sound
    assert json.loads(json.dumps(found.to_dict()))["classes"][2] == {"class": "empty", "train": 0, "val": 0}


def test_a_sound_set_is_sound(plant, picture):
    root = plant({"train/cat": 2, "train/dog": 0, "val/cat": 0})
    (root / "train/dog/0.jpg").write_bytes(picture(5))
    (root / "val/cat/0.jpg").write_bytes(picture(6))
    found = fv.check_data(root)
    assert found.sound
    assert found.bad == found.same_bytes == found.same_pixels == ()


def test_what_is_not_used_is_listed(plant, capsys, picture):
    root = plant({"train/[red]cat": 2, "train/dog": 1, "val/dog": 0})
    for number, name in enumerate(("train/dog/0.jpg", "val/dog/0.jpg")):
        (root / name).write_bytes(picture(50 + number))
    (root / "train/dog/notes.txt").write_text("x")
    assert check_data(root).sound
    (root / "train/dog/raw.dng").write_bytes(b"x")
    found = check_data(root)
    assert found.unused == (
        ("without an image suffix", ("train/dog/notes.txt",)),
        ("of an image format that is not read", ("train/dog/raw.dng",)),
    )
    assert not found.sound
    assert found.to_dict()["unused"][1] == {
        "reason": "of an image format that is not read",
        "names": ["train/dog/raw.dng"],
    }
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(root)])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "not used, of an image format that is not read: 1\n  train/dog/raw.dng" in out
    assert "[red]cat" in out


def test_a_long_group_is_cut_with_its_count(plant, capsys, picture):
    root = plant({"train/cat": 0, "train/dog": 1, "val/dog": 0})
    for number in range(300):
        (root / f"train/cat/{number:03d}.jpg").write_bytes(picture(7))
    (root / "val/dog/0.jpg").write_bytes(picture(9))
    with pytest.raises(SystemExit):
        main(["data", "check", str(root)])
    out = capsys.readouterr().out
    assert "train/cat/000.jpg = train/cat/001.jpg" in out
    assert "= ... (300 images in all)" in out
    assert max(map(len, out.splitlines())) < 300


def test_the_command(spoiled, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(spoiled)])
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert "bad images: 3" in out
    assert "in training and in validation: 1" in out
    assert "train/dog/0.jpg = val/dog/leak.jpg" in out
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(spoiled), "--json"])
    assert json.loads(capsys.readouterr().out) == check_data(spoiled).to_dict()
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(spoiled / "nothing")])
    assert ended.value.code == 2
