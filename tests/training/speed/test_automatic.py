"""What a run decides by measuring. The seconds are a table's: nothing is timed here, and no compiler runs."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from torch import nn

from foveate.errors import FoveateError
from foveate.studies.comparison.compare import compare
from foveate.surgery.insert import insert
from foveate.training.fit import fit
from foveate.training.recipes.recipe import Recipe
from foveate.training.speed import automatic, compilation
from foveate.training.speed.compilation import CompiledCalls, Measured, read_measured, write_measured
from foveate.training.speed.trial import Trial


def same(one, other) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder of torch's for one test, and a backend that needs no compiler."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(automatic, "_BACKEND", "eager")
    return tmp_path / "cache"


@pytest.fixture
def times(monkeypatch):
    """(precision, backend) -> seconds of a step; a step is done all the same."""
    table = {("no", ""): 0.2, ("bf16", ""): 0.1, ("no", "eager"): 0.1, ("bf16", "eager"): 0.05}
    run = Trial.seconds

    def seconds(trial, amp, backend):
        run(trial, amp, backend)
        return table[amp, backend]

    monkeypatch.setattr(Trial, "seconds", seconds)
    return table


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr("foveate.progress.ProgressBar.line", lambda _, text: found.append(text))
    return found


def decisions(lines, name):
    return [line for line in lines if line.startswith((f"{name}:", f"{name}="))]


def test_compile_is_for_runs_that_are_long_enough(data, new_net, recipe, times, lines, monkeypatch, own_cache):
    plain = new_net()
    fit(plain, data, recipe, progress=False)
    model = new_net()
    found = fit(model, data, recipe.with_(compile="auto"), progress=False)  # 3 batches of 8 in an epoch
    assert found.chosen == {"amp": "no", "compile": ""}
    layers = sum(1 for module in model.modules() if not list(module.children()))
    (line,) = decisions(lines, "compile")
    guessed = f"compile: off, for {3 * recipe.epochs} full batches at 200 ms, 1.30 times faster (guessed)"
    assert line == f"{guessed} would save 0 s, and compiling takes {layers / 4:.0f} s"
    assert same(model, plain)
    assert not (own_cache / "foveate").exists()
    lines.clear()
    monkeypatch.setattr(automatic, "_SECONDS_PER_LAYER", 0.0)
    again = new_net()
    found = fit(again, data, recipe.with_(compile="auto"), progress=False)
    assert found.chosen["compile"] == "eager"
    assert decisions(lines, "compile")[1].startswith("compile: on, after 0 s; a step takes 100 ms instead of 200 ms, ")
    assert same(again, plain)
    assert again._compiled_call_impl is None
    (noted,) = (own_cache / "foveate").iterdir()
    assert json.loads(noted.read_text()) == {
        "compile_seconds": 0.1, "warm": False, "eager_seconds": 0.2, "compiled_seconds": 0.1,
    }  # fmt: skip
    lines.clear()
    fit(new_net(seed=3), data, recipe.with_(compile="auto", seed=8), progress=False)  # the same network, other weights
    assert "2.00 times faster (measured before)" in decisions(lines, "compile")[0]
    assert json.loads(noted.read_text())["warm"] is True


def test_a_compiled_step_that_is_not_faster_is_not_taken(data, new_net, recipe, times, lines, monkeypatch):
    monkeypatch.setattr(automatic, "_SECONDS_PER_LAYER", 0.0)
    times["no", "eager"] = 0.195
    assert fit(new_net(), data, recipe.with_(compile="auto"), progress=False).chosen["compile"] == ""
    assert decisions(lines, "compile")[1] == "compile: off, for a compiled step takes 195 ms and the plain one 200 ms"
    lines.clear()
    assert fit(new_net(), data, recipe.with_(compile="auto"), progress=False).chosen["compile"] == ""
    (line,) = decisions(lines, "compile")  # it is known now, and nothing is compiled
    assert "1.03 times faster (measured before)" in line


def test_runs_that_share_a_compilation_pay_it_together(data, new_net, recipe, times, monkeypatch):
    model = new_net()
    layers = sum(1 for module in model.modules() if not list(module.children()))
    # 6 steps save 0.2 s, and the first compilation takes 0.35 s, each later one a quarter of it
    monkeypatch.setattr(automatic, "_SECONDS_PER_LAYER", 0.35 / layers)
    recipe = recipe.with_(compile="auto", epochs=2)
    assert fit(model, data, recipe, progress=False).chosen["compile"] == ""
    with automatic.runs_to_come(4):
        assert fit(new_net(), data, recipe, progress=False).chosen["compile"] == "eager"


@pytest.mark.parametrize("asked", ["auto", "eager"])
@pytest.mark.parametrize("freeze", ["", "0"])
def test_what_cannot_be_compiled_is_trained_without(
    data, new_net, recipe, times, lines, monkeypatch, asked, freeze, tmp_path
):
    monkeypatch.setattr(automatic, "_SECONDS_PER_LAYER", 0.0)
    recipe = recipe.with_(freeze=freeze)
    plain, other, resumed = new_net(), new_net(), new_net()
    fit(plain, data, recipe, progress=False)

    def no_compiler(*_, **__):
        raise RuntimeError("no C++ compiler found: install one")

    with monkeypatch.context() as patch:
        patch.setattr(compilation.torch, "compile", lambda *_, **__: no_compiler)
        output = tmp_path / "run"
        found = fit(other, data, recipe.with_(compile=asked), progress=False, output=output, until_epoch=1)
        assert found.chosen == {"amp": "no", "compile": ""}
    assert decisions(lines, "compile")[-1].endswith("no C++ compiler found: install one")
    assert not any("\n" in line for line in lines)
    # the run has decided, and goes on as it began, though it could be compiled now
    found = fit(resumed, data, recipe.with_(compile=asked), progress=False, output=output, resume=True)
    assert found.chosen == {"amp": "no", "compile": ""}
    assert same(resumed, plain)


def test_a_compiled_run_that_cannot_be_compiled_any_more_is_not_resumed_in_another_way(
    data, new_net, recipe, monkeypatch, tmp_path
):
    recipe = recipe.with_(compile="eager")
    fit(new_net(), data, recipe, progress=False, output=tmp_path / "run", until_epoch=1)

    def no_compiler(*_, **__):
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)

    monkeypatch.setattr(compilation.torch, "compile", lambda *_, **__: no_compiler)
    with pytest.raises(FoveateError, match=r"compile='eager' fails for Sequential: .*; take compile=''"):
        fit(new_net(), data, recipe, progress=False, output=tmp_path / "run", resume=True)


@pytest.mark.parametrize(("half", "chosen"), [(0.1, "bf16"), (0.195, "no"), (0.3, "no")])
def test_the_faster_precision_is_taken_and_kept(
    data, new_net, recipe, times, lines, monkeypatch, tmp_path, half, chosen
):
    times["bf16", ""] = half
    explicit, model, resumed = new_net(), new_net(), new_net()
    fit(explicit, data, recipe.with_(amp=chosen), progress=False)
    found = fit(model, data, recipe.with_(amp="auto"), progress=False, output=tmp_path / "run", until_epoch=1)
    assert found.chosen == {"amp": chosen, "compile": ""}
    (line,) = decisions(lines, "amp")
    name = {"bf16": "bfloat16", "no": "float32"}[chosen]
    assert line == f"amp: {name}, for a step takes {1000 * half:.0f} ms in bfloat16 and 200 ms in float32"
    assert yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["chosen"] == dict(found.chosen)
    monkeypatch.setattr(Trial, "__init__", None)  # a resumed run measures nothing
    found = fit(resumed, data, recipe.with_(amp="auto"), progress=False, output=tmp_path / "run", resume=True)
    assert found.chosen == {"amp": chosen, "compile": ""}
    assert same(resumed, explicit)


def test_a_device_without_bfloat16_trains_in_float32(data, new_net, recipe, lines, monkeypatch):
    run = Trial.seconds

    def seconds(trial, amp, backend):
        if amp == "bf16":
            raise RuntimeError("no bfloat16 here")
        return run(trial, amp, backend)

    monkeypatch.setattr(Trial, "seconds", seconds)
    assert fit(new_net(), data, recipe.with_(amp="auto"), progress=False).chosen["amp"] == "no"
    assert decisions(lines, "amp") == ["amp: float32, for a step in bfloat16 fails (no bfloat16 here)"]


@pytest.mark.parametrize(
    "fields", [{}, {"freeze": "0", "workers": 2}, {"ema_decay": 0.9, "mixup": 0.3, "accumulate": 2}]
)
def test_measuring_changes_no_bit_of_the_run(data, new_net, recipe, times, monkeypatch, fields):
    times["bf16", ""], times["no", "eager"] = 0.3, 0.3
    monkeypatch.setattr(automatic, "_SECONDS_PER_LAYER", 0.0)
    recipe = recipe.with_(epochs=2, **fields)
    plain, model = new_net(), new_net()
    calls = []
    model[0][0].register_forward_hook(lambda *_: calls.append(model.training))
    fit(plain, data, recipe, progress=False)
    state = torch.get_rng_state()
    found = fit(model, data, recipe.with_(amp="auto", compile="auto"), progress=False)
    assert found.chosen == {"amp": "no", "compile": ""}
    assert torch.equal(torch.get_rng_state(), state)
    assert same(model, plain)
    watched = new_net()
    counted = []
    watched[0][0].register_forward_hook(lambda *_: counted.append(watched.training))
    fit(watched, data, recipe, progress=False)
    assert calls == counted  # the model itself does not run in a trial


def test_without_a_full_batch_or_a_copy_nothing_is_measured(data, new_net, recipe, lines, monkeypatch):
    found = fit(new_net(), data, recipe.with_(amp="auto", compile="auto", batch_size=64), progress=False)
    assert found.chosen == {"amp": "no", "compile": ""}
    assert "no batch has 64 images, so nothing is measured: float32, not compiled" in lines
    lines.clear()

    def fail(*_):
        raise ArithmeticError("it does not train")

    monkeypatch.setattr(Trial, "__init__", fail)
    found = fit(new_net(), data, recipe.with_(amp="auto", compile="auto"), progress=False)
    assert found.chosen == {"amp": "no", "compile": ""}
    assert "nothing is measured, for a copy of the network does not train: it does not train" in lines


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"compile_seconds": 1}', "null", "\xff"])
def test_notes_that_cannot_be_read_are_none(own_cache, text):
    file = own_cache / "foveate" / "k.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode("latin-1"))
    assert read_measured("k") is None


@pytest.mark.parametrize("number", [0, -1, math.inf, math.nan, "1", True, None])
def test_seconds_that_are_none_are_refused(own_cache, number):
    with pytest.raises(ValueError, match="no seconds"):
        Measured(1.0, False, 1.0, number)
    write_measured("k", Measured(1.0, False, 1.0, 2.0))
    assert read_measured("k") == Measured(1.0, False, 1.0, 2.0)
    file = own_cache / "foveate" / "k.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "compiled_seconds": number}))
    assert read_measured("k") is None


def test_a_folder_that_cannot_be_written_is_no_error(own_cache):
    own_cache.write_text("a file")
    write_measured("k", Measured(1.0, False, 1.0, 2.0))
    assert read_measured("k") is None


def test_only_full_batches_of_training_run_compiled(data, new_net, recipe, monkeypatch):
    sizes = []
    compiled = torch.compile

    def seen(call, **options):
        made = compiled(call, **options)
        return lambda images: (sizes.append((len(images), call.__self__.training)), made(images))[1]

    monkeypatch.setattr(compilation.torch, "compile", seen)
    fit(new_net(), data, recipe.with_(compile="eager", epochs=2), progress=False)
    assert set(sizes) == {(8, True)}
    assert len(sizes) == 1 + 2 * 3  # the trial's, and those of 26 images


def test_a_model_is_left_without_compilation(new_net):
    model = new_net()
    with pytest.raises(ArithmeticError), CompiledCalls(model, "eager", 8).on(8):
        raise ArithmeticError
    assert model._compiled_call_impl is None


def test_names_for_on_and_off():
    assert Recipe(compile="on") == Recipe(compile="inductor")
    assert Recipe(compile="off") == Recipe()
    assert Recipe.from_dict(Recipe(compile="auto").to_dict()).compile == "auto"


def test_a_comparison_compiles_each_plan_once_for_all_seeds(data, new_net, recipe, times, lines, monkeypatch):
    shared = []
    choose = automatic._choose_backend
    monkeypatch.setattr(
        automatic, "_choose_backend", lambda *given: (shared.append(automatic._runs_to_come.get()), choose(*given))[1]
    )
    recipe = recipe.with_(compile="auto", epochs=1)
    found = compare(lambda seed: new_net(), {"se": "se after 1"}, data, recipe, seeds=2, progress=False)
    assert shared == [2, 2, 1, 1]
    assert all(made["compile"] == "off" for made in found.made_with)
    with pytest.raises(FoveateError, match="amp='auto' could train plans in different precision"):
        compare(lambda seed: new_net(), "se after 1", data, recipe.with_(amp="auto"), seeds=1, progress=False)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch 2.9's compiler
def test_networks_that_differ_in_their_hooks_alone_are_compiled_each_for_itself():
    """torch.compile looks at no hooks by default: attention would be left out, or a hook of the user not called."""
    images, called = torch.randn(2, 3, 8, 8), []

    def network(plan):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).train()
        return insert(net, plan, input_size=8) if plan else net

    for plan in (None, "se after 0", "identity after 0", None):
        model = network(plan)
        for watched in (False, True):
            if watched:
                model[0].register_forward_hook(lambda *_: called.append(1) and None)
            expected = model(images)
            called.clear()
            with CompiledCalls(model, "eager", 2).on(2):
                assert torch.equal(model(images), expected), plan
            assert len(called) == watched
