import numpy as np
import pytest
import torch
from PIL import Image

from foveate.errors import FoveateError
from foveate.explanations.explain import explain
from foveate.image_files import files_of


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg", "in/c.PNG"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 9, dtype=np.uint8)).save(file)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_means_the_images_in_it_and_below(folder, model):
    assert [file.name for file in files_of(folder)] == ["a.jpg", "b.png", "c.PNG"]
    found = explain(model, folder, "gradcam")
    assert found.names == ("a", "b", "c")
    assert len(found.pictures) == 3


@pytest.mark.parametrize(
    ("pattern", "names"), [("*.png", ["b.png"]), ("**/*.[pP]*", ["b.png", "c.PNG"]), ("[ab].*", ["a.jpg", "b.png"])]
)
def test_a_pattern(folder, pattern, names):
    assert [file.name for file in files_of(f"{folder}/{pattern}")] == names


def test_files_folders_and_pictures_together(folder, model, photo):
    found = explain(model, [photo, str(folder / "in"), folder / "a.jpg"], "gradcam")
    assert found.names == ("image", "c", "a")


def test_a_file_whose_name_looks_like_a_pattern(folder, model):
    (folder / "b.png").rename(folder / "b[1].png")
    assert explain(model, folder / "b[1].png", "gradcam").names == ("b[1]",)


@pytest.mark.parametrize(
    ("path", "words"), [("empty", "holds no image"), ("*.gif", "no image matches"), ("*.txt", "no image matches")]
)
def test_nothing_there(folder, model, path, words):
    (folder / "empty").mkdir()
    with pytest.raises(FoveateError, match=words):
        explain(model, folder / path, "gradcam")


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "cam"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_nothing(model, method, batch_size):
    images = torch.randn(9, 3, 32, 32)
    expected = explain(model, images, method)
    found = explain(model, images, method, batch_size=batch_size)
    torch.testing.assert_close(found.maps[0].values, expected.maps[0].values)
    assert torch.equal(found.targets, expected.targets)


def test_no_batch(model, images):
    with pytest.raises(FoveateError, match="batch_size=0"):
        explain(model, images, "gradcam", batch_size=0)


def test_a_bar_on_stderr(model, capsys):
    explain(model, torch.randn(9, 3, 32, 32), "gradcam", progress=True)
    assert capsys.readouterr().out == ""
