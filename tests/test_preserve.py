"""Whatever happens inside ``preserve_state``, the caller's model and random numbers are as before."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from foveate.preserve import preserve_state


class StrangeTrain(nn.Linear):
    """Its ``train`` has side effects, as a model that merges weights for inference has."""

    calls = 0

    def train(self, mode=True):
        self.calls += 1
        return super().train(mode)


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), StrangeTrain(4 * 9, 2))
    net[1].eval()  # frozen, while the others train
    net[0].requires_grad_(False)
    net[3].weight.grad = torch.ones_like(net[3].weight)
    return net


def state_of(net):
    return {
        "modes": [module.training for module in net.modules()],
        "required": [parameter.requires_grad for parameter in net.parameters()],
        "gradients": [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in net.parameters()],
        "hooks": [list(module._forward_hooks) for module in net.modules()],
        "autograd": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    }


def disturb(net, hooks):
    """Everything that a study may do to a model in training."""
    hooks.append(net[0].register_forward_hook(lambda *_: None))
    net.train()
    net.requires_grad_(True)
    with torch.enable_grad():
        net(torch.randn(2, 3, 3, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    random.random(), np.random.rand(), torch.rand(1)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("options", [{}, {"evaluation": True, "no_grad": True}])
@pytest.mark.parametrize("around", [torch.enable_grad, torch.inference_mode])
def test_all_is_as_before_on_success_and_on_error(model, options, error, around):
    calls = model[3].calls
    with around():
        before = state_of(model)
        if around is torch.inference_mode and not options:
            options = {"no_grad": True}  # otherwise nothing could be recorded inside
        try:
            with preserve_state(model, **options) as hooks:
                disturb(model, hooks)
                calls += 1  # of ``disturb`` itself
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt) as raised:
            assert type(raised) is error
        assert state_of(model) == before
    assert model[3].calls == calls


def test_evaluation_mode_without_gradients_inside(model):
    with preserve_state(model, evaluation=True, no_grad=True):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        assert all(parameter.grad is None for parameter in model.parameters())
    with torch.inference_mode(), preserve_state(model):
        assert torch.is_inference_mode_enabled()
        assert model[3].training
        assert not model[1].training


@pytest.mark.parametrize("asked", [True, False])
def test_buffers_where_asked(model, asked):
    model[1].train()
    held = model[1].running_mean
    before, batches = held.clone(), model[1].num_batches_tracked.clone()
    with preserve_state(model, buffers=asked):
        model(torch.randn(8, 3, 3, 3) + 5)
        model[1].running_var = model[1].running_var.double()  # another tensor
    assert torch.equal(model[1].running_mean, before) == asked
    assert torch.equal(model[1].num_batches_tracked, batches) == asked
    assert (model[1].running_var.dtype == torch.float32) == asked
    assert model[1].running_mean is held


def test_shared_modules_several_models_and_none(model):
    other = nn.Sequential(model[1], nn.Dropout()).train()
    model[1].eval()
    with preserve_state(model, other, evaluation=True):
        assert not any(module.training for net in (model, other) for module in net.modules())
    assert (model[1].training, other[1].training) == (False, True)
    numbers = torch.get_rng_state()
    with preserve_state():
        torch.manual_seed(7)
    assert torch.equal(numbers, torch.get_rng_state())


def test_nested_and_after_a_module_was_exchanged(model):
    kept = model[3]
    with preserve_state(model):
        with preserve_state(model, evaluation=True):
            assert not kept.training
        assert kept.training
        kept.eval()
        model[3] = nn.Identity()
    assert kept.training
    assert kept.weight.grad is not None
