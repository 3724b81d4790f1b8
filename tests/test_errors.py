"""The error's words: one line, the nearest name, and a list when none is near."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import FoveateError, near


def test_it_is_a_value_error_that_ends_with_2():
    assert issubclass(FoveateError, ValueError)
    assert FoveateError("x").exit_code == 2


@pytest.mark.parametrize(
    "asked,exist,said",
    [
        ("ulsm", ["se", "ulsam", "cbam"], "did you mean 'ulsam'?"),
        ("blocks.4", ["blocks.3", "blocks.5"], "did you mean 'blocks.5' or 'blocks.3'?"),
        ("zzz", ["se", "ulsam"], "there are: se, ulsam"),
        ("zzz", [], "there are none"),
        ("zzz", [f"n{i}" for i in range(10)], "there are: n0, n1, n2, n3, n4, n5, n6, n7, and 2 more"),
        ("", ["se"], "there are: se"),
    ],
)
def test_near(asked, exist, said):
    assert near(asked, exist) == said
    assert near(asked, iter(exist)) == said


def test_how_many_are_listed():
    names = [f"n{i}" for i in range(10)]
    assert near("zzz", names, most=10) == "there are: " + ", ".join(names)
    assert near("zzz", names, most=2) == "there are: n0, n1, and 8 more"


@given(st.text(max_size=20), st.lists(st.sampled_from(["se", "ulsam", "cbam", "blocks.1"]), max_size=6))
def test_near_always_says_something_that_exists(asked, exist):
    said = near(asked, exist)
    assert said
    assert any(name in said for name in exist) == bool(exist)
