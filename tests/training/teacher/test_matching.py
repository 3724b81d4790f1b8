"""Before training, attention in a block's place learns to give what the block gave."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import foveate as fv
from foveate.images import Preprocess
from foveate.studies.comparison.run import Run
from foveate.surgery.insert import replaced_by
from foveate.training.input.loaders import normalised
from foveate.training.metrics import Diverged
from foveate.training.teacher import matching

SITES = ("0", "2")
PLAN = "non_local replacing 0, 2"


def make_net(seed: int = 0) -> nn.Sequential:
    """Two blocks that a mechanism can stand for, the first one a linear map that non-local's projection can learn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 3, 1),
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
        net[1][1].running_mean.normal_()
        return net


def attended(plan: str = PLAN, seed: int = 0) -> nn.Module:
    return fv.insert(make_net(seed), plan, seed=3, input_size=16)


def matched(model, data, recipe, monkeypatch):
    """The steps before training alone: what they say, and the state after them."""
    said = []
    original = matching.match_replaced

    def watched(*call):
        said.extend(original(*call))
        state.update({name: value.clone() for name, value in model.state_dict().items()})
        return said

    state: dict[str, torch.Tensor] = {}
    with monkeypatch.context() as patch:
        patch.setattr("foveate.training.loop.match_replaced", watched)
        fv.fit(model, data, recipe.with_(epochs=1), progress=False)
    return said, state


def test_only_what_stands_in_a_blocks_place_learns_and_comes_nearer(data, recipe, monkeypatch):
    model = attended()
    before = copy.deepcopy(model.state_dict())
    said, state = matched(model, data, recipe.with_(matching_steps=60), monkeypatch)
    assert [match.site for match in said] == list(SITES)
    for match in said:
        assert 0 < match.after < 0.7 * match.before
        assert f"{match.after:.2f}" in str(match)
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    assert changed
    assert all(name.startswith(("0.foveate.", "2.foveate.")) for name in changed)


def test_each_block_is_matched_on_the_networks_own_features(data, recipe, monkeypatch):
    both = matched(attended(), data, recipe.with_(matching_steps=5), monkeypatch)[1]
    alone = fv.insert(make_net(), "non_local replacing 2", seed=3, input_size=16)
    twin = {name: value for name, value in attended().state_dict().items() if name.startswith("2.")}
    alone.load_state_dict(twin, strict=False)  # the same weights at the start
    one = matched(alone, data, recipe.with_(matching_steps=5), monkeypatch)[1]
    for name in twin:
        assert torch.equal(one[name], both[name]), name


def test_the_error_is_that_of_the_features_by_hand(data, recipe, monkeypatch):
    model, plain = attended(), make_net().eval()
    images = []
    original = matching._batches

    def watched(*call):
        for inputs in original(*call):
            images.append(inputs)
            yield inputs

    monkeypatch.setattr(matching, "_batches", watched)
    before = copy.deepcopy(model).eval()
    said = matched(model, data, recipe.with_(matching_steps=1), monkeypatch)[0]
    x = normalised(images[0], Preprocess.of(model, 16), torch.device("cpu"))
    with torch.no_grad():
        wanted = plain[0](x)
        given = before[0](x)
    share = (given - wanted).square().mean() / wanted.var()
    assert said[0].before == pytest.approx(float(share), rel=1e-4)
    assert said[0].left_out == pytest.approx(float((x - wanted).square().mean() / wanted.var()), rel=1e-4)


@pytest.mark.parametrize("plan", ["se after 1", "identity replacing 2"])
def test_where_nothing_can_learn_it_is_a_run_without(data, recipe, plan):
    runs = [attended(plan) for _ in range(2)]
    for model, steps in zip(runs, (0, 4), strict=True):
        fv.fit(model, data, recipe.with_(epochs=1, matching_steps=steps), progress=False)
    assert all(map(torch.equal, runs[0].state_dict().values(), runs[1].state_dict().values()))


@pytest.mark.parametrize(
    "changes", [{}, {"ema_decay": 0.5}, {"freeze": "1"}, {"augmentation": "standard", "workers": 1}]
)
def test_paused_and_resumed_ends_with_the_same_bits(tmp_path, data, recipe, changes):
    recipe = recipe.with_(epochs=2, matching_steps=5, **changes)
    plan = "non_local replacing 2" if "freeze" in changes else PLAN
    whole, first, second = attended(plan), attended(plan), attended(plan, seed=0 if "freeze" in changes else 5)
    fv.fit(whole, data, recipe, progress=False)
    fv.fit(first, data, recipe, output=tmp_path, until_epoch=1, progress=False)
    fv.fit(second, data, recipe, output=tmp_path, resume=True, progress=False)
    assert all(map(torch.equal, whole.state_dict().values(), second.state_dict().values()))


def test_a_loaded_network_has_its_blocks_no_more(tmp_path, data, recipe):
    fv.save(attended(), tmp_path / "saved")
    model = fv.load(tmp_path / "saved", model=make_net(seed=5))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fv.FoveateError, match="matching_steps needs the block that stood at '0'.*matching_steps=0"):
        fv.fit(model, data, recipe.with_(matching_steps=2), progress=False)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


def test_a_block_that_is_not_finite_is_said(data, recipe):
    net = make_net()
    with torch.no_grad():
        net[2][0].weight.fill_(float("nan"))
    model = fv.insert(make_net(), PLAN, seed=3, input_size=16)
    replaced_by(model)["2"].load_state_dict(net[2].state_dict())
    hooks = [len(module._forward_hooks) for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Diverged, match="matching_steps"):
        fv.fit(model, data, recipe.with_(matching_steps=2), progress=False)
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_runs_without_it_keep_the_names_that_they_had(recipe):
    plain, asked = (Run("net", "none", None, recipe.with_(matching_steps=steps), "data") for steps in (0, 3))
    assert "matching_steps" not in plain.identity["recipe"]
    assert asked.identity["recipe"]["matching_steps"] == 3
    assert plain.name != asked.name
