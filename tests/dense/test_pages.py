"""The pages of the heads name every option."""

import inspect
import re
from pathlib import Path

import pytest

from foveate.dense import HEADS

PAGES = Path(__file__).parents[2] / "docs" / "dense"


@pytest.mark.parametrize("name", HEADS)
def test_page_and_docstring_name_every_option(name):
    page = (PAGES / f"{name}.md").read_text()
    for parameter in inspect.signature(HEADS[name]).parameters.values():
        assert re.search(rf"^\s+{parameter.name}: ", HEADS[name].__doc__, re.MULTILINE), parameter.name
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"| `{parameter.name}` |" in page, parameter.name
    assert "https://arxiv.org" in inspect.getmodule(HEADS[name]).__doc__
