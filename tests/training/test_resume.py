from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foveate.errors import FoveateError
from foveate.training.fit import fit
from foveate.training.loop import Run

SCRIPT = Path(__file__).parent / "killed_run.py"


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Interrupted(BaseException):
    pass


def interrupt(monkeypatch, at_step: int) -> None:
    """Break a run off before a training step, without giving it the chance to write anything."""
    true_step, steps = Run.step, 0

    def step(self, *args):
        nonlocal steps
        steps += 1
        if steps == at_step:
            monkeypatch.setattr(Run, "step", true_step)
            raise Interrupted
        return true_step(self, *args)

    monkeypatch.setattr(Run, "step", step)


EVERYTHING = {
    "optimiser": "lamb",
    "augmentation": "randaugment",
    "mixup": 0.4,
    "cutmix": 1.0,
    "accumulate": 2,
    "batch_size": 4,
    "amp": "bf16",
    "gradient_clip": 1.0,
    "label_smoothing": 0.1,
    "warmup_epochs": 0.5,
    "head_learning_rate_scale": 2.0,
    "temperature": 2.0,  # and a teacher
    "compile": "eager",
}


# 26 images, 8 in a step: 4 steps an epoch, a checkpoint at steps 3, 6, 9, 12 and after each epoch.
KILLED = [
    ({"workers": 0, "augmentation": "flip"}, 8),
    ({"workers": 2, "augmentation": "randaugment"}, 8),
    ({"workers": 0, **EVERYTHING}, 15),
    ({"workers": 2, **EVERYTHING, "compile": "", "loss": "bce"}, 14),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folders of runs that were killed, and how each of them ended."""
    folders = [tmp_path_factory.mktemp("killed") / "run" for _ in KILLED]
    runs = [(str(folder), {**run[0], "ema_decay": 0.5}, run[1]) for folder, run in zip(folders, KILLED, strict=True)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, str(SCRIPT), json.dumps(runs)]
    ended = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return list(zip(folders, map(int, ended.stdout.split()), strict=True))


@pytest.mark.parametrize("number", range(len(KILLED)))
def test_killed_in_mid_epoch_and_resumed_ends_with_the_same_bits(data, new_net, recipe, killed, number):
    changes = KILLED[number][0]
    recipe = recipe.with_(**changes, ema_decay=0.5)
    teacher = new_net(seed=7) if "temperature" in changes else None
    whole = new_net()
    expected = fit(whole, data, recipe, progress=False, teacher=teacher)

    output, code = killed[number]
    assert code == -signal.SIGKILL
    assert (output / "training.safetensors").exists()

    resumed = new_net(seed=5)
    got = fit(resumed, data, recipe, output=output, resume=True, progress=False, teacher=teacher)
    assert same_state(resumed, whole)
    assert torch.equal(got.evaluation.probabilities, expected.evaluation.probabilities)
    timing = ("seconds", "images_per_second")
    rows = [[{k: v for k, v in row.items() if k not in timing} for row in f.history] for f in (got, expected)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"freeze": "1"},
        {"optimiser": "sgd", "gradient_clip": 0.1},
        {"augmentation": "standard", "channels_last": False},
        {"optimiser": "lamb", "amp": "bf16"},
        {"optimiser": "adafactorbv", "momentum": 0.5},
    ],
)
@pytest.mark.parametrize("step", [2, 4, 5, 12])
def test_interrupted_anywhere(tmp_path, monkeypatch, data, new_net, recipe, changes, step):
    recipe = recipe.with_(**changes)
    whole, model = new_net(), new_net()
    fit(whole, data, recipe, progress=False)
    interrupt(monkeypatch, step)
    with pytest.raises(Interrupted):
        fit(model, data, recipe.with_(checkpoint_every=1), output=tmp_path, progress=False)
    resumed = new_net(seed=3)
    fit(resumed, data, recipe, output=tmp_path, resume=True, progress=False)
    assert same_state(resumed, whole)


def test_interrupted_before_the_first_checkpoint_starts_again(tmp_path, monkeypatch, data, new_net, recipe):
    whole = new_net()
    fit(whole, data, recipe, progress=False)
    interrupt(monkeypatch, 3)
    with pytest.raises(Interrupted):
        fit(new_net(), data, recipe, output=tmp_path, progress=False)
    resumed = new_net()
    fit(resumed, data, recipe, output=tmp_path, resume=True, progress=False)
    assert same_state(resumed, whole)


def test_a_finished_run_gives_its_result(tmp_path, data, new_net, recipe):
    recipe = recipe.with_(ema_decay=0.9)
    model = new_net()
    first = fit(model, data, recipe, output=tmp_path, progress=False)
    held = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = new_net(seed=9)
    second = fit(again, data, recipe.with_(workers=2), output=tmp_path, resume=True, progress=False)
    assert same_state(again, model)
    assert second.history == first.history
    assert second.seconds == first.seconds
    assert torch.equal(second.evaluation.probabilities, first.evaluation.probabilities)
    changed = [path.name for path, content in held.items() if path.read_bytes() != content]
    assert set(changed) <= {"args.yaml", "recipe.yaml"}  # workers, which the result does not depend on


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.5}, "recipe.learning_rate is 0.005 there and 0.5 now"),
        ({"epochs": 9}, "recipe.epochs is 3 there and 9 now"),
        ({"freeze": "1"}, "recipe.freeze is '' there and '1' now"),
    ],
)
def test_another_recipe_is_not_resumed(tmp_path, data, new_net, recipe, changes, words):
    fit(new_net(), data, recipe, output=tmp_path, progress=False)
    model = new_net(seed=2)
    before = new_net(seed=2)
    with pytest.raises(FoveateError) as error:
        fit(model, data, recipe.with_(**changes), output=tmp_path, resume=True, progress=False)
    assert words in str(error.value)
    assert same_state(model, before)


def test_other_data_plan_or_model_is_not_resumed(tmp_path, data, new_data, new_net, recipe):
    import timm

    from foveate.surgery.insert import insert

    fit(new_net(), data, recipe, output=tmp_path / "a", progress=False)
    with pytest.raises(FoveateError, match=r"data\.fingerprint is"):
        fit(new_net(), new_data(29), recipe, output=tmp_path / "a", resume=True, progress=False)
    wider = new_net()
    wider[4] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 16))
    with pytest.raises(FoveateError, match="another model: its weights have other names or shapes"):
        fit(wider, data, recipe, output=tmp_path / "a", resume=True, progress=False)

    recipe = recipe.with_(epochs=1, image_size=32)
    model = timm.create_model("resnet10t", num_classes=3)
    fit(model, data, recipe, output=tmp_path / "b", progress=False)
    insert(model, "se after layer2.0", input_size=32)
    with pytest.raises(FoveateError, match=r"plan is '' there and 'se after layer2\.0' now"):
        fit(model, data, recipe, output=tmp_path / "b", resume=True, progress=False)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_damaged_checkpoint_is_refused(tmp_path, data, new_net, recipe, keep):
    fit(new_net(), data, recipe.with_(epochs=1), output=tmp_path, progress=False)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    model, before = new_net(), new_net()
    with pytest.raises(FoveateError, match="is damaged and cannot be resumed from"):
        fit(model, data, recipe.with_(epochs=1), output=tmp_path, resume=True, progress=False)
    assert same_state(model, before)


def test_another_optimiser_state_that_cannot_be_kept_is_refused(tmp_path, data, new_net, recipe):
    class Odd(torch.optim.SGD):
        def state_dict(self):
            return {"state": {0: {"strange": object()}}, "param_groups": []}

    from foveate.training.checkpoint import Position, save_state

    model = new_net()
    with pytest.raises(FoveateError, match="this optimiser's state cannot be saved"):
        save_state(tmp_path / "x", {"model": model}, Odd(model.parameters()), Position(), {})
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(tmp_path, new_net):
    from foveate.training.checkpoint import Position, save_state
    from foveate.training.metrics import Diverged

    model, path = new_net(), tmp_path / "state"
    optimiser = torch.optim.SGD(model.parameters())
    save_state(path, {"model": model}, optimiser, Position(), {})
    good = path.read_bytes()
    with torch.no_grad():
        model[6].bias[1] = float("inf")
    with pytest.raises(Diverged, match="model.6.bias is NaN or infinite"):
        save_state(path, {"model": model}, optimiser, Position(epoch=1), {})
    assert path.read_bytes() == good
