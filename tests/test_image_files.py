from __future__ import annotations

import os
from pathlib import Path

import pytest

from foveate.errors import FoveateError
from foveate.image_files import files_of, is_system, walk_images


@pytest.fixture
def tree(tmp_path):
    names = ["b/2.png", "b/10.jpg", "a.png", "b.png", "b-/x.JPG", "c/d/e.webp", "c/.hidden/x.png", ".x.png"]
    names += ["@eaDir/thumb.jpg", "__MACOSX/y.png", "notes.txt", "c/raw.dng"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_images_come_in_the_order_of_their_paths(tree):
    found = list(walk_images(tree))
    assert found == sorted(found)
    names = [path.relative_to(tree).as_posix() for path in found]
    assert sorted(names) == sorted(["b/2.png", "b/10.jpg", "a.png", "b.png", "b-/x.JPG", "c/d/e.webp"])
    assert files_of(tree) == found


def test_links_are_followed_and_never_in_a_circle(tree):
    (tree / "c" / "up").symlink_to(tree)
    (tree / "other").symlink_to(tree / "b")
    (tree / "gone.png").symlink_to(tree / "nowhere.png")
    os.mkfifo(tree / "pipe.png")
    names = [path.relative_to(tree).as_posix() for path in walk_images(tree)]
    assert names == ["a.png", "b/10.jpg", "b/2.png", "b-/x.JPG", "b.png", "c/d/e.webp", "gone.png"]


def test_a_folder_that_cannot_be_listed_is_told(tree, monkeypatch):
    real = os.scandir

    def scandir(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    told = []
    found = list(walk_images(tree, unreadable=lambda *each: told.append(each)))
    assert len(found) == 4
    assert told == [(str(tree / "b"), "the folder cannot be read: Permission denied")]
    with pytest.raises(FoveateError, match="Permission denied"):
        list(walk_images(tree))


def test_what_systems_make_for_themselves():
    assert is_system("Thumbs.db")
    assert is_system("@eaDir")
    assert not is_system("cats")
