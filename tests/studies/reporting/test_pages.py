"""One function writes the page of whatever has one, and says what it takes."""

import pytest

import foveate as fv


@pytest.mark.parametrize("result", [None, "runs/compare", {"plan": "se"}])
def test_what_has_no_page(tmp_path, result):
    with pytest.raises(fv.FoveateError, match=rf"not a {type(result).__name__}$"):
        fv.write_page(result, tmp_path / "page.md")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_a_page(tmp_path):
    with pytest.raises(fv.FoveateError, match="is a folder: name a file in it"):
        fv.write_page(None, tmp_path)
