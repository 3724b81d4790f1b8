from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.training.recipes.recipe import AMP, AUGMENTATIONS, SCHEDULES, Recipe


def test_imports_no_torch():
    code = "import sys; from foveate.training.recipes.recipe import Recipe; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    epochs=st.integers(1, 1000),
    learning_rate=st.floats(0, 10),
    schedule=st.sampled_from(SCHEDULES),
    augmentation=st.sampled_from(AUGMENTATIONS),
    amp=st.sampled_from(AMP),
    image_size=st.none() | st.integers(1, 4096),
    bn_momentum=st.none() | st.floats(0, 1),
    freeze=st.text(),
)
def test_survives_json(**fields):
    recipe = Recipe(**fields)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_is_documented():
    for field in dataclasses.fields(Recipe):
        assert f"    {field.name}: " in (Recipe.__doc__ or "")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epochs": -1}, "epochs=-1 must be at least 0"),
        ({"epochs": 1.5}, "epochs=1.5 is not a whole number"),
        ({"epochs": True}, "epochs=True is not a whole number"),
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3' is not a number"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"learning_rate": None}, "learning_rate=None is not a number"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"label_smoothing": 1.1}, "at most 1"),
        ({"gradient_clip": 0}, "gradient_clip=0.0 must be more than 0"),
        ({"schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"augmentation": "randaug"}, "did you mean 'randaugment'?"),
        ({"amp": "bf8"}, "there are: no, bf16, fp16"),
        ({"channels_last": 1}, "channels_last=1 is not true or false"),
        ({"freeze": None}, "freeze=None is not text"),
        ({"epochs": 2, "warmup_epochs": 3}, "warmup_epochs=3.0 is longer than epochs=2"),
    ],
)
def test_refuses(fields, words):
    with pytest.raises(FoveateError) as error:
        Recipe(**fields)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_with_changes_one_field_and_names_the_near_one():
    assert Recipe().with_(epochs=3) == Recipe(epochs=3)
    with pytest.raises(FoveateError, match="no field 'learningrate'; did you mean 'learning_rate'"):
        Recipe().with_(learningrate=1.0)
    with pytest.raises(FoveateError, match="'batchsize'"):
        Recipe.from_dict({"batchsize": 1})


def test_a_whole_number_stands_for_a_float():
    recipe = Recipe(learning_rate=1)
    assert isinstance(recipe.learning_rate, float)
    assert recipe == Recipe(learning_rate=1.0)
