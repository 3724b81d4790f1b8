"""Every public name is called as it is written down, or one line names the nearest."""

import inspect
import pickle
import types

import pytest

import foveate as fv
from foveate.arguments import WrongArguments


def takes(function, kind):
    return any(p.kind is kind for p in inspect.signature(function).parameters.values())


VERBS = [name for name in fv.__all__ if isinstance(getattr(fv, name), types.FunctionType)]
KEYWORD, POSITIONAL = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
MADE_BY_USERS = ("FeatureCache", "ImageData", "Placement", "Plan", "Recipe", "Spec")


def last_keyword(function):
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD][-1]


@pytest.mark.parametrize("name", [n for n in (*VERBS, *MADE_BY_USERS) if not takes(getattr(fv, n), KEYWORD)])
def test_an_argument_that_does_not_exist_names_the_nearest(name):
    called = getattr(fv, name)
    if not inspect.signature(called).parameters:
        with pytest.raises(WrongArguments, match=f"{name} has no argument 'x'; there are none"):
            called(x=1)
        return
    nearest = last_keyword(called)
    with pytest.raises(WrongArguments) as caught:
        called(**{f"{nearest}x": 1})
    said = str(caught.value)
    assert said.startswith(f"{name} has no argument '{nearest}x'; did you mean ")
    assert repr(nearest) in said
    assert isinstance(caught.value, fv.FoveateError)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", [name for name in VERBS if not takes(getattr(fv, name), POSITIONAL)])
def test_too_many_arguments_are_one_line(name):
    called = getattr(fv, name)
    parameters = inspect.signature(called).parameters.values()
    with pytest.raises(WrongArguments, match=f"^{name}: too many positional arguments; call it as {name}\\("):
        called(*range(len(parameters) + 1))


def test_a_field_of_the_recipe_is_sent_there():
    with pytest.raises(WrongArguments) as caught:
        fv.fit(None, None, epochs=1)
    assert str(caught.value) == "fit has no argument 'epochs'; write fit(..., recipe=fv.Recipe(epochs=...))"
    with pytest.raises(WrongArguments, match=r"compare\(..., recipe=fv.Recipe\(learning_rate=...\)\)"):
        fv.compare(None, [], None, learning_rate=1)
    with pytest.raises(
        WrongArguments, match=r"^fit: missing a required argument: 'data'; call it as fit\(model, data,"
    ):
        fv.fit(None)
    with pytest.raises(
        WrongArguments, match="Recipe has no argument 'lr'; there are: epochs, optimiser, learning_rate,"
    ):
        fv.Recipe(lr=3)
    with pytest.raises(WrongArguments, match="'epoch'; did you mean 'epochs'"):
        fv.Recipe(epoch=3)


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="^foveate has no 'expalin'; did you mean 'explain'") as caught:
        fv.expalin  # noqa: B018 - that is the test
    assert isinstance(caught.value, fv.FoveateError)
    assert not hasattr(fv, "nope")
    assert not hasattr(fv, "__nope__")
    with pytest.raises(ImportError):
        from foveate import expalin  # noqa: F401


def test_the_checked_functions_are_still_the_functions():
    assert pickle.loads(pickle.dumps(fv.fit)) is fv.fit  # noqa: S301 - made on this line
    assert fv.fit.__doc__.startswith("Train a classifier")
    assert list(inspect.signature(fv.fit).parameters)[:3] == ["model", "data", "recipe"]
    assert next(iter(inspect.signature(fv.Recipe).parameters)) == "epochs"
    assert fv.names() == fv.names()


def test_evaluate_under_its_older_argument():
    with (
        pytest.warns(DeprecationWarning, match=r"evaluate\(split=...\) is evaluate\(data=...\) now"),
        pytest.raises(fv.FoveateError, match="no data at .*nowhere"),
    ):
        fv.evaluate(None, split="/nowhere")
