"""Every public name is called as it is written down, or one line names the nearest."""

import inspect
import itertools
import pickle
import types

import pytest
from PIL import Image
from torch import nn

import foveate as fv
from foveate.arguments import WrongArguments


class Anything:
    """What nothing takes; its text is the same in each process."""

    def __repr__(self):
        return "anything"


ANYTHING = Anything()


def takes(function, kind):
    return any(p.kind is kind for p in inspect.signature(function).parameters.values())


BY_NAME = ("compare", "export", "export_all", "search")  # these take a name or a path, too
OR_A_CLASSIFIER = ("evaluate", "predict")  # these take what gives scores, be it a network or not
BY_FUNCTION = ("compare", "search")  # and these a function that makes a network
VERBS = [name for name in fv.__all__ if isinstance(getattr(fv, name), types.FunctionType)]
KEYWORD, POSITIONAL = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
MADE_BY_USERS = ("FeatureCache", "ImageData", "Placement", "Plan", "Recipe", "Spec")


NETWORKS = [
    (verb, name)
    for verb in VERBS
    if verb not in OR_A_CLASSIFIER
    for name in ("model", "reference", "teacher")
    if name in inspect.signature(getattr(fv, verb)).parameters
]


@pytest.mark.parametrize("given", ["resnet18", None, 3, ANYTHING, nn.Conv2d], ids=str)
@pytest.mark.parametrize("verb, name", NETWORKS)
def test_what_is_no_network_is_one_line(verb, name, given):
    """At the door, before anything else is looked at: all other arguments make no sense."""
    called = getattr(fv, verb)
    parameters = inspect.signature(called).parameters.values()
    optional = next(p.default is None for p in parameters if p.name == name)
    by_name, by_function = isinstance(given, str) and verb in BY_NAME, given is nn.Conv2d and verb in BY_FUNCTION
    if by_name or by_function or (given is None and optional):
        return  # it may stand there
    needed = {p.name: nn.Identity() for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    with pytest.raises(fv.FoveateError, match=r"^a network \(torch.nn.Module\).* is expected, not a") as caught:
        called(**(needed | {name: given}))
    assert "\n" not in str(caught.value)
    assert ("foveate.create_model('resnet18') makes one" in str(caught.value)) == isinstance(given, str)


@pytest.mark.parametrize("given", [None, 3, ANYTHING], ids=str)
def test_what_gives_no_scores_is_one_line(given, tmp_path):
    for part, label in itertools.product(("train", "val"), "ab"):
        (tmp_path / part / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / label / "0.png")
    for call in (fv.evaluate, fv.predict):
        with pytest.raises(fv.FoveateError, match="^the model is a network, .* not [a-zA-Z]+$"):
            call(given, tmp_path)


# Each function whose batches are of one size; to time a network several can be given.
IN_BATCHES = [verb for verb in VERBS if "batch_size" in inspect.signature(getattr(fv, verb)).parameters]


@pytest.mark.parametrize("given", ["2", 0, -1, 1.5, True, None, [2], ANYTHING], ids=str)
@pytest.mark.parametrize("verb", [verb for verb in IN_BATCHES if verb != "latency"])
def test_a_batch_size_that_is_none_is_one_line(verb, given):
    values = {"model": nn.Identity(), "images": [], "data": "nowhere", "methods": ["gradcam"], "method": "gradcam"}
    parameters = inspect.signature(getattr(fv, verb)).parameters
    with pytest.raises(fv.FoveateError, match="^batch_size=.*: (give a whole number,|must be) at least 1$"):
        getattr(fv, verb)(**{name: value for name, value in values.items() if name in parameters}, batch_size=given)


def test_a_network_by_name_among_several():
    with pytest.raises(fv.FoveateError, match="is expected, not a str: foveate.create_model"):
        fv.faithfulness({"plain": nn.Identity(), "other": "resnet18"}, None, ["gradcam"])


def test_the_functions_that_take_a_network():
    """So that the test above is of them all."""
    verbs = {verb for verb, _ in NETWORKS}
    assert {"cost", "explain", "export", "fit", "fuse", "insert", "latency", "plan_of", "save", "sites"} <= verbs
    annotated = {
        verb
        for verb in VERBS
        for name, p in inspect.signature(getattr(fv, verb)).parameters.items()
        if "nn.Module" in str(p.annotation) and name != "trunk"
    }
    assert annotated <= verbs


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
