from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.training.optimizer import create_optimiser, learning_rate_factor, set_learning_rate
from foveate.training.recipes.recipe import Recipe


def test_cosine_starts_at_one_and_nears_zero():
    recipe = Recipe(epochs=4)
    factors = [learning_rate_factor(recipe, step, 10) for step in range(40)]
    assert factors[0] == 1
    assert factors[20] == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.01


def test_warmup_rises_linearly_to_the_peak_and_no_further():
    recipe = Recipe(epochs=4, warmup_epochs=0.5)
    factors = [learning_rate_factor(recipe, step, 10) for step in range(40)]
    assert factors[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert factors[5] == max(factors) == 1


def test_step_is_ten_times_lower_after_each_third():
    recipe = Recipe(epochs=3, schedule="step")
    assert [learning_rate_factor(recipe, step, 2) for step in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant():
    recipe = Recipe(epochs=3, schedule="constant")
    assert {learning_rate_factor(recipe, step, 2) for step in range(6)} == {1.0}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_groups(name, new_net):
    model: nn.Sequential = new_net()
    head = model[-1]
    recipe = Recipe(optimiser=name, learning_rate=0.5, head_learning_rate_scale=3, weight_decay=0.25)
    model[0].requires_grad_(False)
    optimiser = create_optimiser(model, head.parameters(), recipe)
    settings = {}
    rate = set_learning_rate(optimiser, recipe, 0, 10)
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            settings[id(parameter)] = (group["lr"], group["weight_decay"])
    for own, parameter in model.named_parameters():
        if own.startswith("0."):
            assert id(parameter) not in settings
        else:
            expected = (3 if own.startswith("6.") else 1) * rate, 0.25 if parameter.ndim > 1 else 0.0
            assert settings[id(parameter)] == expected
    assert rate == 0.5


def test_an_unknown_optimiser_names_near_ones():
    with pytest.raises(FoveateError, match=r"no optimiser is called 'adamv'; did you mean .*adam"):
        create_optimiser(nn.Linear(2, 2), [], Recipe(optimiser="adamv"))
    with pytest.raises(FoveateError, match="second derivatives"):
        create_optimiser(nn.Linear(2, 2), [], Recipe(optimiser="adahessian"))


def test_decays_only_weights():
    model = nn.Linear(4, 4)
    optimiser = create_optimiser(model, [], Recipe(optimiser="sgd", learning_rate=1.0, weight_decay=0.5, momentum=0.0))
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    assert torch.equal(model.weight, before[0] / 2)
    assert torch.equal(model.bias, before[1])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lamb"])
def test_one_pass_gives_the_same_step(name, new_net):
    def stepped(**options):
        torch.manual_seed(0)
        net = new_net()
        made = create_optimiser(net, [], Recipe(optimiser=name, learning_rate=0.1))
        for group in made.param_groups:
            group.update(options)
        for _ in range(2):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            made.step()
        return made, list(net.parameters())

    made, found = stepped()
    assert bool(made.defaults.get("fused")) == (name != "lamb")  # torch has no such form of LAMB
    _, expected = stepped(fused=False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
