"""Recipes by name and from files; the strict reader never guesses and never executes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.training.recipes.named import NAMED, as_yaml, open_recipe
from foveate.training.recipes.recipe import Recipe
from foveate.training.recipes.yaml_file import read_flat, write_flat


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def test_imports_no_torch():
    code = "import foveate.training.recipes.named, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_recipe_says_its_source_and_survives_its_file(name, tmp_path):
    named = NAMED[name]
    assert named.what
    assert "ours" in named.source or "https://" in named.source
    assert open_recipe(written(tmp_path, as_yaml(named.recipe))) == named.recipe == open_recipe(name)
    assert open_recipe(name, epochs=17, warmup_epochs=0.0).epochs == 17


def test_a_file_starts_from_a_named_recipe(tmp_path):
    path = written(tmp_path, "base: scratch\nepochs: 7\nlearning_rate: 1e-3\n")
    assert open_recipe(path) == NAMED["scratch"].recipe.with_(epochs=7, learning_rate=0.001)
    assert open_recipe(path, epochs=9).epochs == 9
    assert open_recipe(written(tmp_path, "")) == open_recipe(written(tmp_path, "# nothing\n---\n")) == Recipe()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), ("-2", -2), ("+3", 3), ("0", 0), ("0.0", 0.0),
        ("10", 10), ("true", True), ("false", False), ("null", None), ("~", None), ("", None), ("'010'", "010"),
        ('"true"', "true"), ("no", "no"), ("off", "off"), ("1:30", "1:30"), ("0x10", "0x10"), ("0o10", "0o10"),
        ("1_000", "1_000"), ("2020-01-01", "2020-01-01"), (".inf", ".inf"), (".nan", ".nan"), ("blocks.4", "blocks.4"),
    ],
)  # fmt: skip
def test_values_are_what_a_person_reads(text, value):
    found = read_flat(f"field: {text}\n", "x")["field"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: 010\n", "line 1: 010 has a leading zero"),
        ("learning_rate: 00.1\n", "has a leading zero"),
        ("epochs: 1\nseed: 2\nepochs: 3\n", "line 3: 'epochs' is given twice"),
        ("epoch: 1\n", "no field 'epoch'; did you mean 'epochs'"),
        ("learning_rate: fast\n", "learning_rate='fast' is not a number"),
        ("workers: 0x10\n", "is not a whole number"),
        ("amp: false\n", "amp=False is not text"),
        ("cache: yes\n", "cache='yes' is not true or false"),
        ("learning_rate: .inf\n", "is not a number"),
        ("learning_rate: 1e999\n", "learning_rate=inf"),
        ("base: shorts\n", "did you mean 'short'"),
        ("epochs: [1]\n", "without lists"),
        ("epochs: {a: 1}\n", "without lists"),
        ("- epochs\n", "without lists"),
        ("epochs\n", "lines of 'field: value'"),
        ("epochs: 1\n---\nepochs: 2\n", "documents"),
        ("epochs: &a 1\n", "anchors"),
        ("epochs: &a 1\nseed: *a\n", "references"),
        ("epochs: !!int '010'\n", "tags"),
        ("freeze: !!python/object/apply:os.system ['touch marker']\n", "without lists"),
        ("freeze: !!python/name:os.system x\n", "tags"),
        ("epochs: 'a\n", "is not YAML"),
        ("epochs:\t1\n\tseed: 2", "is not YAML"),
        (f"epochs: {'9' * 5000}\n", "too long"),
        ("x" * 200_000, "more than a recipe can need"),
    ],
)  # fmt: skip
def test_surprises_are_errors(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FoveateError) as error:
        open_recipe(written(tmp_path, text))
    assert words in str(error.value)
    assert "recipe.yaml" in str(error.value) or "no recipe" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FoveateError, match="cannot be read: No such file"):
        open_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"freeze: \xff\n")
    with pytest.raises(FoveateError, match="not UTF-8"):
        open_recipe(tmp_path / "latin.yaml")
    with pytest.raises(FoveateError, match="no recipe is called 'scrach': did you mean 'scratch'"):
        open_recipe("scrach")


PRINTABLE = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn"), exclude_characters="\ufeff"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PRINTABLE


@given(st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(Recipe)]), SCALARS))
def test_what_is_written_is_read_back(values):
    found = read_flat(write_flat(values), "x")
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


@given(st.text() | st.text(alphabet="ab:01- \n\t'\"{}[]&*!|>%@`#,?~.e+_"))
def test_any_text_is_a_mapping_or_one_clear_line(text):
    try:
        found = read_flat(text, "x")
    except FoveateError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(value, bool | int | float | str | None) for value in found.values())


@given(st.integers(0, 10**9), st.integers(1, 3))
def test_a_leading_zero_is_never_octal(number, zeros):
    with pytest.raises(FoveateError, match="leading zero"):
        read_flat(f"epochs: {'0' * zeros}{number}", "x")
