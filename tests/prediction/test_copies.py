from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import foveate as fv
from foveate.errors import FoveateError
from foveate.prediction.copies import Copies, folder_name


def test_files_are_copied_by_class(net, photos, tmp_path):
    found = fv.predict(net, photos / "val")
    assert found.copy_to(tmp_path / "by class") == 12
    wanted = {}
    for one in found:
        wanted.setdefault(one.label, []).append(one.path.read_bytes())
    for label, contents in wanted.items():
        assert sorted(file.read_bytes() for file in (tmp_path / "by class" / label).iterdir()) == sorted(contents)
    assert {folder.name for folder in (tmp_path / "by class").iterdir()} == set(wanted)


def test_nothing_is_overwritten(tmp_path):
    sources = []
    for k in range(3):
        (tmp_path / str(k)).mkdir()
        sources.append(tmp_path / str(k) / "a.png")
        sources[-1].write_text(f"new {k}")
    (tmp_path / "to" / "cat").mkdir(parents=True)
    (tmp_path / "to" / "cat" / "a.png").write_text("old")
    for _ in range(2):  # a second run goes on counting
        copies = Copies(tmp_path / "to")
        for source in sources:
            copies.add(source, "cat", "a.png")
    names = ["a.png", *(f"a-{k}.png" for k in range(2, 8))]
    texts = [(tmp_path / "to" / "cat" / name).read_text() for name in names]
    assert texts == ["old", "new 0", "new 1", "new 2", "new 0", "new 1", "new 2"]
    assert len(list((tmp_path / "to" / "cat").iterdir())) == 7


@settings(max_examples=200)
@given(st.text(max_size=300))
@example("../../etc")
@example("..")
@example(".")
@example("")
@example("/etc/passwd")
@example("a/../../b")
@example("C:\\Windows")
@example("con.txt")
@example("NUL")
@example("x" * 500)
@example("é" * 300)
@example("a\0b")
@example("trailing. . ")
@example("\udc80")
def test_no_name_of_a_class_leads_elsewhere(label):
    name = folder_name(label)
    assert name
    assert name[0] != "."
    assert len(os.fsencode(name)) <= 202
    assert not set(name) & set('/\\:*?"<>|\0')
    assert name == name.rstrip(" .")
    above = Path("/a/b")
    assert Path(os.path.normpath(above / name)).parent == above


def test_classes_whose_names_become_the_same_have_folders_of_their_own(tmp_path):
    (tmp_path / "a.png").write_text("x")
    copies = Copies(tmp_path / "to")
    labels = ("a/b", "a:b", "A_B", "a_b-2", "\u00e9", "e\u0301")
    places = [copies.add(tmp_path / "a.png", label, "a.png") for label in labels]
    assert len({str(place.parent).casefold() for place in places}) == 6
    assert all(place.parent.parent == tmp_path / "to" for place in places)
    assert copies.add(tmp_path / "a.png", "a/b", "a.png").parent == places[0].parent


def test_a_folder_that_is_read_is_not_copied_into(net, photos, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(photos / "val", root)
    (tmp_path / "link").symlink_to(root)
    for place in (root, root / "sorted", tmp_path / "link" / "sorted"):
        with pytest.raises(FoveateError, match="would be read as images of .*photos again"):
            fv.predict(net, root).copy_to(place)
    assert sorted(entry.name for entry in root.iterdir()) == ["blue", "green", "red"]
    assert fv.predict(net, root / "red").copy_to(root / "sorted") == 4  # beside it


def test_what_cannot_be_copied_is_said_and_no_part_is_left(net, photos, tmp_path, new_picture, monkeypatch):
    with pytest.raises(FoveateError, match="image 1 is not a file, so it cannot be copied"):
        fv.predict(net, new_picture(0, 0)).copy_to(tmp_path / "to")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FoveateError, match="cannot make the folder"):
        fv.predict(net, photos / "val").copy_to(tmp_path / "file")

    def full(source, target):
        target.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    csv = tmp_path / "p.csv"
    with pytest.raises(FoveateError, match=r"cannot copy .*0.png to .*: No space left on device"):
        fv.predict(net, photos / "val").write(csv, copy_to=tmp_path / "to")
    assert [entry for entry in (tmp_path / "to").rglob("*") if entry.is_file()] == []
    assert not csv.exists()
