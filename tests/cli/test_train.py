"""foveate train: recipes by name and file, and what the command line adds."""

from __future__ import annotations

import json

import pytest

from foveate import Recipe
from foveate.cli import main
from foveate.cli.train import RecipeOptions, chosen_recipe
from foveate.errors import FoveateError
from foveate.training.recipes.named import NAMED


def test_options_change_the_recipe_that_is_named(tmp_path):
    assert chosen_recipe(None, None) == chosen_recipe(None, RecipeOptions()) == Recipe()
    assert chosen_recipe(None, RecipeOptions(epochs=3)) == Recipe(epochs=3)
    named = NAMED["short"].recipe
    assert chosen_recipe("short", RecipeOptions(gradient_clip=None)) == named.with_(gradient_clip=None)
    path = tmp_path / "mine.yaml"
    path.write_text("base: short\nepochs: 9\nlearning_rate: 1e-4\n")
    assert chosen_recipe(str(path), RecipeOptions(learning_rate=0.5)) == named.with_(epochs=9, learning_rate=0.5)
    with pytest.raises(FoveateError, match="did you mean 'short'"):
        chosen_recipe("shrt", None)


def test_a_run_by_a_file(folder, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 2\nimage_size: 32\nbatch_size: 8\naugmentation: standard\nlearning_rate: 1e-3\n")
    command = ["train", str(folder), "--model", "resnet10t", "--recipe", str(path), "--epochs", "1", "--json"]
    kept = {}
    for output in ("a", "b"):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--output", str(tmp_path / output), "--cache-folder", str(tmp_path / "cache")])
        assert not ended.value.code
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert [row["class"] for row in found["classes"]] == ["left", "right"]
        assert "recipe: epochs=1" in err
        kept[output] = found["confusion"], found["ece"]
    assert kept["a"] == kept["b"]  # the seed decides the random weights, too
    assert "epochs: 1\n" in (tmp_path / "a" / "recipe.yaml").read_text()
    assert list((tmp_path / "cache").glob("*.pixels"))


def test_one_line_for_a_file_that_is_wrong(folder, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 010\n")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(folder), "--recipe", str(path)])
    assert ended.value.code == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("line 1: 010 has a leading zero; write it without, or in quotes if it is text")
    )


def test_options_that_were_not_given_are_left_where_a_program_has_pydantic(folder, capsys):
    pytest.importorskip("pydantic")  # with which cyclopts then checks values
    with pytest.raises(SystemExit) as ended:
        main(["train", str(folder), "--model", "resnet10tt", "--epochs", "1"])
    assert ended.value.code == 2
    assert "resnet10tt" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["train", str(folder), "--epochs", "one"])
    assert ended.value.code == 2
    assert "--epochs" in capsys.readouterr().err
