from __future__ import annotations

import copy
import logging

import pytest
import timm
import torch
from torch import nn

from foveate.surgery.insert import insert
from foveate.training.fit import fit
from foveate.training.freeze import Frozen
from foveate.training.input.feature_cache import FeatureCache, trunk_digest


def same(one: nn.Module, other: nn.Module, prefix: str = "", *, exact: bool = True) -> None:
    for key, value in one.state_dict().items():
        if key.startswith(prefix):
            tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-4}
            torch.testing.assert_close(value, other.state_dict()[key], **tolerance)


@pytest.mark.parametrize("augmentation", ["none", "flip"])
@pytest.mark.parametrize("freeze", ["1", "trunk"])
def test_cached_trains_as_uncached_and_leaves_the_trunk(data, new_net, recipe, freeze, augmentation):
    recipe = recipe.with_(freeze=freeze, augmentation=augmentation, optimiser="sgd")
    start, cached, plain = new_net(), new_net(), new_net()
    one = fit(cached, data, recipe, progress=False)
    other = fit(plain, data, recipe.with_(cache=False), progress=False)
    same(cached, plain, exact=False)
    for prefix in ("0.", "1."):
        same(cached, start, prefix)
        same(plain, start, prefix)
    assert not torch.equal(cached[-1].weight, start[-1].weight)
    assert one.history[-1]["train_loss"] == pytest.approx(other.history[-1]["train_loss"], rel=1e-3)
    torch.testing.assert_close(one.evaluation.probabilities, other.evaluation.probabilities, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cache", [True, False])
def test_images_in_memory_change_nothing(data, new_net, recipe, cache):
    model, streamed = new_net(), new_net()
    fit(model, data, recipe, progress=False)
    limit = FeatureCache(image_limit_bytes=0)
    fit(streamed, data, recipe.with_(cache=cache), progress=False, cache=limit)
    same(model, streamed)
    assert len(limit) == 0


class Counting(nn.Conv2d):
    runs = 0

    def forward(self, x):
        Counting.runs += 1
        return super().forward(x)


def counting(net: nn.Sequential) -> nn.Sequential:
    Counting.runs = 0
    net[0][0].__class__ = Counting
    return net


def test_the_trunk_runs_once_per_image_and_is_shared(data, new_net, recipe):
    cache, recipe = FeatureCache(), recipe.with_(freeze="1", augmentation="none", epochs=5)
    fit(counting(new_net()), data, recipe, progress=False, cache=cache)
    first = Counting.runs
    assert len(cache) == 2
    held = cache.held_bytes
    assert held == (26 + 9) * 16 * 8 * 8 * 4
    fit(counting(new_net()), data, recipe.with_(seed=2), progress=False, cache=cache)
    second = Counting.runs
    assert first - second == 2  # one batch of 26 and one of 9
    assert (len(cache), cache.held_bytes) == (2, held)
    fit(counting(new_net(seed=1)), data, recipe, progress=False, cache=cache)
    assert Counting.runs == first
    assert len(cache) == 4


def test_other_data_size_or_freeze_is_never_served_from_the_cache(data, new_data, new_net, recipe):
    cache, recipe = FeatureCache(), recipe.with_(freeze="0", augmentation="none", epochs=1)
    variants = [
        (data, recipe),
        (new_data(20), recipe),
        (data, recipe.with_(freeze="1")),
        (data, recipe.with_(image_size=20)),
        (data, recipe.with_(augmentation="flip")),
    ]
    for images, changed in variants:
        shared, alone = new_net(), new_net()
        fit(shared, images, changed, progress=False, cache=cache)
        fit(alone, images, changed, progress=False)
        same(shared, alone)
    assert len(cache) == 9  # the validation features do not depend on flips


def test_two_plans_share_the_features_of_one_trunk(data, recipe):
    recipe = recipe.with_(epochs=1, freeze="layer2", image_size=32, augmentation="none")
    plain = timm.create_model("resnet10t", num_classes=3)
    attending = insert(copy.deepcopy(plain), "se after layer3", input_size=32, seed=0)
    cache = FeatureCache()
    fit(plain, data, recipe, progress=False, cache=cache)
    fit(attending, data, recipe, progress=False, cache=cache)
    assert len(cache) == 2
    assert not torch.equal(plain.layer4[0].conv1.weight, attending.layer4[0].conv1.weight)


def test_too_large_for_the_cache(data, new_net, recipe, caplog):
    recipe = recipe.with_(freeze="1", augmentation="none", optimiser="sgd")
    small, plain = new_net(), new_net()
    cache = FeatureCache(limit_bytes=100)
    with caplog.at_level(logging.INFO, "foveate"):
        fit(small, data, recipe, progress=False, cache=cache)
    assert "features of the train images are too large for the cache" in caplog.text
    assert len(cache) == 0
    fit(plain, data, recipe.with_(cache=False), progress=False)
    same(small, plain)
    cache.clear()


def test_a_network_that_is_no_chain_still_trains(data, recipe, caplog):
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.second, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.second(self.norm(self.first(x)) + x).mean((2, 3)))

    model = Skips()
    before = copy.deepcopy(model)
    with caplog.at_level(logging.INFO, "foveate"):
        fit(model, data, recipe.with_(freeze="norm"), progress=False)
    assert "no chain up to 'norm'" in caplog.text
    same(model, before, "first")
    same(model, before, "norm")
    assert not torch.equal(model.second.weight, before.second.weight)


class Scaled(nn.Module):
    """What only forward reads is in no name, weight or repr."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_trunks_that_differ_in_a_plain_attribute_do_not_share(data, new_net, recipe):
    recipe = recipe.with_(freeze="1", augmentation="none", epochs=1)
    cache, ends = FeatureCache(), []
    for factor in (1.0, 3.0, 1.0):
        shared, alone = new_net(), new_net()
        shared[0].append(Scaled(factor))
        alone[0].append(Scaled(factor))
        fit(shared, data, recipe, progress=False, cache=cache)
        fit(alone, data, recipe, progress=False)
        same(shared, alone)
        ends.append(shared[-1].weight)
    assert len(cache) == 4
    assert torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], ends[1])


def test_attention_without_parameters_in_the_trunk_is_part_of_the_key():
    digests = []
    for plan in ("timm:ge(use_mlp=False, extent=2)", "timm:ge(use_mlp=False, extent=4)"):
        for site in ("layer1", "layer2"):
            model = timm.create_model("resnet10t", num_classes=3)
            model.load_state_dict({key: torch.ones_like(value) for key, value in model.state_dict().items()})
            insert(model, f"{plan} after {site}; se after layer3", input_size=64, seed=0)
            digests.append(trunk_digest(model, Frozen(("conv1", "bn1", "act1", "maxpool", "layer1", "layer2"))))
    assert len(set(digests)) == 4
