"""Mechanisms by name: the folder's, timm's and one's own; a request that does not fit is refused in words."""

import functools
import inspect
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import foveate as fv
from foveate import registry
from foveate.attention import _timm
from foveate.errors import FoveateError
from foveate.spec import Spec

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """What a test registers goes away with it."""
    monkeypatch.setattr(registry, "_REGISTERED", {})


class Scale(nn.Module):
    """A mechanism as a user writes one: options by position, one without a default type."""

    def __init__(self, channels, factor=1.0, mode="fixed", *, learn=False, size=None):
        super().__init__()
        self.factor = nn.Parameter(torch.full((channels, 1, 1), float(factor)), requires_grad=learn)

    def forward(self, x):
        return x * self.factor


def test_names_are_the_files_of_the_folder():
    assert {"ulsam", "se", "cbam"} <= set(fv.names())
    assert list(fv.names()) == sorted(fv.names())
    assert not any(name.startswith("_") for name in fv.names())


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ("attention", "pooling", "heads") for name in registry.names(kind)]
)
def test_docstring_names_every_option_shape_and_paper(kind, name):
    constructor = registry.find(name, kind)
    for option in registry.options(name, kind):
        assert re.search(rf"^\s+{option}: ", constructor.__doc__, re.MULTILINE), option
    assert "Shape:" in constructor.__doc__
    assert "https://" in inspect.getmodule(constructor).__doc__


@pytest.mark.parametrize("name", registry.names())
def test_every_name_builds_and_says_its_options(name):
    module = fv.build(name, 64)
    assert isinstance(module, nn.Module)
    written = ", ".join(f"{key}={value!r}" for key, value in fv.options(name).items())
    assert isinstance(fv.build(f"{name}({written})", 64), type(module))


def test_build_takes_text_or_data():
    one = fv.build("se(reduction=4, bias=False)", 32)
    other = fv.build(Spec("se", (("reduction", 4), ("bias", False))), 32)
    assert str(one) == str(other)
    assert one.fc1.out_features == 8


def test_ones_own_mechanism_in_a_plan_and_out_again():
    assert fv.register("scale", Scale) is Scale
    assert "scale" in fv.names()
    assert fv.options("scale") == {"factor": 1.0, "mode": "fixed", "learn": False, "size": None}
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    x = torch.rand(1, 3, 8, 8)
    expected = model(x)
    fv.insert(model, "scale(factor=2, learn=True) after 0", input_size=8)
    assert torch.equal(model(x), (2 * model[0]._modules["foveate"].factor / 2 * expected))
    assert str(fv.plan_of(model)) == "scale(factor=2, learn=True) after 0"
    assert torch.equal(fv.remove(model)(x), expected)


def test_as_a_decorator():
    @fv.register("mine")
    class Mine(Scale):
        pass

    assert isinstance(fv.build("mine(factor=3)", 4), Mine)


def test_a_function_will_do():
    fv.register("twofold", functools.partial(Scale, factor=2))
    fv.register("threefold", lambda channels, *, factor=3: Scale(channels, factor))
    assert fv.build("twofold", 4).factor[0].item() == 2
    assert fv.build("threefold", 4).factor[0].item() == 3


def test_a_cell_that_runs_again_registers_again():
    def cell(value):
        class Mine(Scale):
            made = value

        fv.register("mine", Mine)

    cell(1)
    cell(2)
    assert registry.find("mine").made == 2


@pytest.mark.parametrize("name", ["se", "ulsam", "scale"])
def test_a_name_that_is_taken(name):
    fv.register("scale", Scale)
    with pytest.raises(FoveateError, match=f"cannot register '{name}': the name is taken"):
        fv.register(name, lambda channels: nn.Identity())


@pytest.mark.parametrize("name", ["my attention", "a-b", "1x", "", "timm:x", "a.b", "né", "x\n"])
def test_a_name_that_is_none(name):
    with pytest.raises(FoveateError, match="a name is letters, digits and _"):
        fv.register(name, Scale)


def with_start(channels, *, start=0):
    return Scale(channels)


@pytest.mark.parametrize("constructor", [3, "Scale", with_start, lambda: None])
def test_a_constructor_that_cannot_be_one(constructor):
    with pytest.raises(FoveateError, match="it is called as constructor"):
        fv.register("mine", constructor)
    assert "mine" not in fv.names()


@pytest.mark.parametrize(
    "spec,message",
    [
        ("ulsm", r"no mechanism is called 'ulsm'; did you mean 'ulsam'\? \(timm's own: 'timm:NAME'\)"),
        ("eca", r"no mechanism is called 'eca'.*\(timm's own: 'timm:NAME'\)"),
        ("timm:ecca", "timm has no attention layer 'ecca'; did you mean"),
        ("timm:_layer", "timm has no attention layer"),
        ("_timm", "no mechanism is called '_timm'"),
        ("torch.nn.Linear", "no mechanism is called"),
        ("se(reductoin=4)", "se has no option 'reductoin'; did you mean 'reduction'"),
        ("se(channels=4)", "se has no option 'channels'; there are: reduction, bias"),
        ("se(self=4)", "se has no option 'self'"),
        ("se(reduction=4.0)", "reduction=4.0 is not of type int"),
        ("se(reduction='4')", "reduction='4' is not of type int"),
        ("se(bias=1)", "bias=1 is not of type bool; the default is bias=True"),
        ("ulsam(momentum=True)", "momentum=True is not of type float"),
        ("ulsam(groups=3)", "ulsam.groups=3. does not fit 64 channels: take groups from 1, 2, 4, 8, 16"),
        ("ulsam(groups=-4)", "does not fit"),
        ("ulsam(groups=0)", "does not fit"),
        ("timm:se(rd_ratioo=0.5)", "timm:se has no option 'rd_ratioo'; did you mean 'rd_ratio'"),
        ("se(reduction=None)", "se.reduction=None. cannot be built for 64 channels"),
        ("se after x", "'after' is left over"),
    ],
)
def test_what_cannot_be_built(spec, message):
    with pytest.raises(FoveateError, match=message) as caught:
        fv.build(spec, 64)
    assert "\n" not in str(caught.value)


def test_a_registry_that_does_not_exist():
    for ask in (fv.names, lambda kind: fv.build("se", 4, kind=kind), lambda kind: fv.register("x", Scale, kind=kind)):
        with pytest.raises(FoveateError, match="there is no registry 'atention'; did you mean 'attention'"):
            ask("atention")


@pytest.mark.parametrize(
    "error", [KeyError("k"), IndexError("a\nb"), AttributeError("x"), OSError("y"), RuntimeError()]
)
def test_whatever_a_constructor_raises_is_said(error):
    def fails(channels):
        raise error

    fv.register("fails", fails)
    with pytest.raises(FoveateError, match="fails cannot be built for 4 channels: ") as caught:
        fv.build("fails", 4)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


# A fixed feature map; sides that are multiples of its blocks; an error of its own that timm has since it was released.
REFUSED = {"bottleneck": "feature size", "halo": "AssertionError", "ge": "multiple values"}


@pytest.mark.parametrize("name", _timm.names())
def test_timms_own_layers(name):
    """Each goes in with its defaults and keeps the shape, or says in one line why not."""
    model, x = nn.Sequential(nn.Conv2d(3, 64, 1)).eval(), torch.rand(2, 3, 14, 14)
    try:
        fv.insert(model, f"timm:{name} after 0", input_size=14)
    except FoveateError as error:
        message = str(error)
        assert "\n" not in message
        assert f"timm:{name} " in message
        assert "at site '0'" in message
        assert REFUSED.get(name, "no error") in message
        assert fv.plan_of(model) is None
    else:
        assert model(x).shape == (2, 64, 14, 14)


@pytest.mark.parametrize("name", _timm.names())
def test_options_of_timms_layers_can_be_written(name):
    options = fv.options(f"timm:{name}")
    assert all(isinstance(value, bool | int | float | str | None) for value in options.values())
    spec = Spec(f"timm:{name}", tuple(options.items()))
    assert Spec.parse(str(spec)) == spec
    assert not {"device", "dtype"} & set(options)


def test_there_are_timm_layers():
    assert {"se", "eca", "cbam", "ge", "gc"} <= set(_timm.names())


def test_an_option_of_timms_layer_arrives():
    assert fv.build("timm:se(rd_ratio=0.5)", 64).fc1.out_channels == 32


words = st.sampled_from(["", "relu", "sum", "x"])
odd = st.one_of(st.none(), st.booleans(), st.integers(-3, 17), st.floats(-2, 4), words)
chosen = st.sampled_from([*registry.names(), *(f"timm:{name}" for name in _timm.names())]).flatmap(
    lambda name: st.tuples(
        st.just(name), st.dictionaries(st.sampled_from(sorted(registry.options(name)) or ["none"]), odd, max_size=3)
    )
)


@given(chosen, st.sampled_from([1, 3, 8, 12]))
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_options_build_or_are_refused_in_one_line(asked, channels):
    name, options = asked
    try:
        module = fv.build(Spec(name, tuple(options.items())), channels)
    except FoveateError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(module, nn.Module)
