"""A mechanism or network of one's own whose code has changed is another run; what is foveate's keeps its name."""

import csv
import functools
import importlib.util
import linecache
import logging
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import foveate as fv
from foveate.registry import find
from foveate.spec import Spec
from foveate.studies.comparison import scheduler
from foveate.studies.comparison.config import labelled_plans
from foveate.studies.comparison.networks.maker import Maker
from foveate.studies.comparison.networks.own_code import own_code

ROOT = Path(__file__).parents[3]
RECIPE = fv.Recipe(epochs=1, batch_size=16, image_size=32, learning_rate=1e-3)
TEXT = """
import torch
from torch import nn

import helpers

FACTOR = 2.0
TITLE = "not used"


def twice(x):
    return FACTOR * x


def other(x):
    return x


class Base(nn.Module):
    def __init__(self, channels, *, power=1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))


class Mine(Base):
    scale = 1

    def forward(self, x):
        # a word
        return self.gate(twice(x)) * helpers.half(1)

    def gate(self, x):
        return x * self.weight[:, None, None]


class Net(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)
"""
HELPERS = "def half(x):\n    return x / 2\n"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """(old, new, ...) -> a module with ``TEXT`` in which old is replaced by new, in a file of its own."""
    count = iter(range(100))

    def load(name, text):
        file = tmp_path / f"{name}_{next(count)}.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    def write(old="", new="", helpers=HELPERS, name="own_module"):
        assert old in TEXT
        load("helpers", helpers)
        return load(name, TEXT.replace(old, new, 1) if old else TEXT)

    return write


def digest(thing):
    return own_code([thing]).digest


@pytest.mark.parametrize(
    "old,new",
    [
        ("return self.gate(twice(x))", "return self.gate(x)"),
        ("x * self.weight[:, None, None]", "x + self.weight[:, None, None]"),
        ("FACTOR = 2.0", "FACTOR = 3.0"),
        ("return FACTOR * x", "return x * x"),
        ("torch.ones(channels)", "torch.zeros(channels)"),
        ("scale = 1", "scale = 2"),
        ("power=1", "power=2"),
    ],
)
def test_what_changes_a_mechanism_changes_its_digest(written, old, new):
    assert digest(written().Mine) != digest(written(old, new).Mine)


@pytest.mark.parametrize(
    "first,second",
    [
        ("[1, 2]", "[1, 3]"),
        ("{'a': 1}", "{'a': 2}"),
        ("{1, 2}", "{1, 3}"),
        ("([1], {'a': {2}})", "([1], {'a': {3}})"),
        ("torch.tensor([1.00001])", "torch.tensor([1.00004])"),
        ("__import__('numpy').float32(2)", "__import__('numpy').float32(3)"),
        ("torch.ones(40, 40).numpy()", "torch.zeros(40, 40).numpy()"),
    ],
)
def test_values_that_it_names_count_whatever_holds_them(written, first, second):
    found = [digest(written("FACTOR = 2.0", f"FACTOR = {value}").Mine) for value in (first, second, first)]
    assert found[0] == found[2] != found[1]


def test_a_class_in_a_dictionary_counts(written):
    kinds = []
    for power in (2, 3):
        mine = written("return FACTOR * x", "return KINDS, x").Mine
        act = type("Act", (), {"power": power, "__module__": mine.__module__})
        mine.forward.__globals__["KINDS"] = {"a": [act]}
        kinds.append(mine)
    assert digest(kinds[0]) != digest(kinds[1])


def test_an_attribute_is_not_a_variable_of_the_same_name(written):
    mine = written().Mine
    before = digest(mine)
    for value in (1, 2):
        mine.forward.__globals__["weight"] = value  # self.weight is another thing
        assert digest(mine) == before


def test_a_file_that_changes_after_it_was_loaded_changes_nothing(written):
    mine = written().Mine
    before, file = digest(mine), Path(mine.forward.__code__.co_filename)
    file.write_text("# one line more\n" + file.read_text())
    linecache.checkcache(str(file))
    assert digest(mine) == before


def test_what_is_of_another_module_of_ones_own_counts_too(written):
    assert digest(written().Mine) != digest(written(helpers=HELPERS.replace("2", "3")).Mine)


@pytest.mark.parametrize("old,new", [('"not used"', '"other"'), ("def other(x):\n    return x", "")])
def test_what_it_does_not_name_does_not_count(written, old, new):
    assert digest(written().Mine) == digest(written(old, new).Mine)


def test_a_script_and_a_process_that_it_started_agree(written):
    assert digest(written().Mine) == digest(written(name="own_main").Mine)


def test_functions_and_options_that_are_filled_in(written):
    mine = written().Mine
    assert digest(functools.partial(mine, power=2)) != digest(functools.partial(mine, power=3)) != digest(mine)
    powers = [lambda channels, power=power: mine(channels, power=power) for power in (2, 3)]
    assert digest(powers[0]) not in (None, digest(mine))

    def filled(power):
        return lambda channels: mine(channels, power=power)

    assert digest(filled(2)) != digest(filled(3))


def test_code_that_was_typed_is_told_apart_by_what_it_was_compiled_to():
    spaces = [{}, {}, {}]
    for space, value in zip(spaces, (1, 1, 2), strict=True):
        text = f"def make(channels):\n    return {value} if channels in {{'a', 'b', 'c'}} else 0"
        exec(text, space)  # noqa: S102 - as at a prompt
    one, same, other = (digest(space["make"]) for space in spaces)
    assert one == same != other


def test_ours_has_none():
    assert own_code([find("se"), find("timm:eca"), nn.Linear, type(timm.create_model("test_resnet"))]).digest is None
    maker = Maker("test_resnet", False, None)
    assert maker.code([(Spec("se"), "after"), (Spec("gap"), "as pool"), (Spec("timm:eca"), "after")], RECIPE) is None


def test_what_has_no_source_is_named_once(caplog, monkeypatch):
    monkeypatch.setattr("foveate.registry._REGISTERED", {("attention", "built"): slice})
    maker = Maker("test_resnet", False, None)
    with caplog.at_level(logging.WARNING, "foveate"):
        found = [maker.code([(Spec("built"), "after")], RECIPE.with_(seed=seed)) for seed in (0, 1)]
    assert found[0] == found[1] is not None
    (record,) = caplog.records
    assert record.getMessage().startswith("slice: the code cannot be read, so a finished run is taken for the same")


@pytest.fixture
def trained(monkeypatch):
    """The plans that are trained."""
    found, real = [], scheduler.fit
    monkeypatch.setattr(
        scheduler, "fit", lambda model, *a, **k: found.append(str(fv.plan_of(model))) or real(model, *a, **k)
    )
    return found


def test_a_mechanism_that_was_changed_is_trained_again(written, folder, tmp_path, trained, monkeypatch):
    data = fv.open_data(folder)
    for module in (written(), written("gate(twice(x))", "gate(other(x))"), written()):
        monkeypatch.setattr("foveate.registry._REGISTERED", {})
        fv.register("mine", module.Mine)
        fv.compare("test_resnet", "mine after layer2.0", data, RECIPE, 1, output=tmp_path / "c", progress=False)
    assert trained == ["None", "mine after layer2.0", "mine after layer2.0"]


def test_a_network_whose_forward_was_changed_is_trained_again(written, folder, tmp_path, trained):
    data = fv.open_data(folder)
    for module in (written(), written("2 * super", "3 * super"), written()):

        def network(seed, kind=module.Net):
            torch.manual_seed(seed)
            return kind(timm.create_model("test_resnet", num_classes=2))

        fv.compare(network, "se after 0.layer2.0", data, RECIPE, 1, output=tmp_path / "c", progress=False)
    assert trained == ["None", "se after 0.layer2.0"] * 2


def test_a_study_of_changed_mechanisms_is_another_one(written, folder, monkeypatch):
    names = []

    def propose(*_, name, **__):
        names.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr("foveate.studies.search.search.propose", propose)
    for module in (written(), written("gate(twice(x))", "gate(other(x))"), written()):
        monkeypatch.setattr("foveate.registry._REGISTERED", {})
        fv.register("mine", module.Mine)
        with pytest.raises(KeyboardInterrupt):
            fv.search("test_resnet", "mine|se after any of layer*.0", folder, RECIPE, trials=2, progress=False)
    assert names[0] == names[2] != names[1]


@pytest.mark.parametrize("name", ["groups", "longer", "mechanisms", "forms", "scale"])
def test_the_names_of_runs_that_were_published_stay(name, monkeypatch):
    """A name that changes would leave rows of docs/reports/evidence_runs.csv without their plans."""
    monkeypatch.setattr("foveate.registry._REGISTERED", {})
    spec = importlib.util.spec_from_file_location("forms", ROOT / "benchmarks" / "evidence" / "forms.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    protocol = fv.read_protocol(ROOT / "benchmarks" / "evidence" / f"{name}.yaml")
    data = type("Data", (), {"fingerprint": protocol.fingerprint})
    maker = Maker(protocol.model, protocol.pretrained, protocol.start)
    labelled, _ = labelled_plans(list(protocol.plans), lambda family: family, 64)
    with (ROOT / "docs" / "reports" / "evidence_runs.csv").open(newline="") as file:
        csv.field_size_limit(1 << 27)
        there = {row["run"] for row in csv.DictReader(file)}
    found = {maker.job(label, plan, protocol.recipe.with_(seed=0), data).run.name for label, plan in labelled.items()}
    assert found <= there
