"""Looking at a model leaves it, its hooks and every random number alone, whether or not it can run without data."""

import functools
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as pruning

import foveate as fv
from foveate.errors import FoveateError
from foveate.surgery.model_copy import on_a_copy
from foveate.surgery.trace import input_size_of, probe


class NeedsData(nn.Module):
    """A network that cannot run without data, in the ways that networks do."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.drop = nn.Dropout(0.5)
        self.count = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        x = self.first(x)
        if self.way == "item" and x.sum().item() > 1e9:
            x = x * 2
        if self.way == "cpu tensor":
            x = x + torch.full((1, 8, 1, 1), 0.5)
        if self.way == "numpy":
            x = x + torch.from_numpy(x.detach().numpy()).mean()
        if self.way == "random":
            x = x + torch.rand(()) * x.sum().item()
        self.count += 1
        self.seen += 1
        self.cache = x
        return self.last(self.drop(self.block(x))).mean((2, 3))


WAYS = ["none", "item", "cpu tensor", "numpy", "random"]


@pytest.fixture(params=WAYS)
def needy(request):
    torch.manual_seed(0)
    return NeedsData(request.param)


def verbs(model, size=32):
    """Everything that looks at a model."""
    return [
        lambda: fv.sites(model, size),
        lambda: fv.cost(model, size),
        lambda: fv.cost(model, size, counting="paper"),
        lambda: probe(model, size),
        lambda: fv.remove(fv.insert(model, "se after block", input_size=size)),
    ]


def test_models_that_need_data_are_seen(needy):
    seen, _ = probe(needy, 32)
    assert seen["block"].out_shape == (1, 8, 30, 30)
    fv.insert(needy, "se after block", input_size=32)
    assert fv.cost(needy, 32).baseline.macs == 3 * 8 * 9 * 30 * 30 + 2 * 8 * 8 * 30 * 30 + 8 * 8 * 9 * 28 * 28


def test_looking_leaves_everything(needy, untouched):
    random.seed(1)
    np.random.seed(1)
    needy.train()
    needy.block.eval()
    needy(torch.rand(1, 3, 32, 32)).sum().backward()
    needy.last.weight.requires_grad_(False)
    for look in verbs(needy):
        with untouched(needy):
            look()


def test_looking_calls_no_hook_of_the_user(needy):
    called = []

    class Watcher:
        def __init__(self):
            self.lock = threading.Lock()  # cannot be copied

        def __call__(self, *args):
            called.append("object")

        def method(self, *args):
            called.append("method")

    watcher = Watcher()
    handles = [
        needy.block.register_forward_hook(lambda *args: called.append("lambda")),
        needy.block.register_forward_pre_hook(
            functools.partial(lambda *args, mark: called.append(mark), mark="partial")
        ),
        needy.first.register_forward_hook(watcher),
        needy.last.register_forward_hook(watcher.method),
        needy.last.register_full_backward_hook(watcher.method),
        needy.last.register_full_backward_pre_hook(watcher.method),
    ]
    for look in verbs(needy):
        look()
    assert called == []
    needy.last.weight.requires_grad_(True)
    needy(torch.rand(1, 3, 32, 32)).sum().backward()
    assert {"lambda", "partial", "object", "method"} == set(called)  # they still work
    for handle in handles:
        handle.remove()


def test_hooks_that_compute_weights_stay(untouched):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    parametrizations.spectral_norm(model[0])
    parametrizations.weight_norm(model[1])
    pruning.l1_unstructured(model[2], "weight", 0.5)
    with untouched(model):
        assert probe(model, 16)[0]["2"].out_shape == (1, 8, 10, 10)
        fv.remove(fv.insert(model, "se after 1", input_size=16))


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_raises_is_left_alone(training, untouched):
    class Raises(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.steps = nn.Conv2d(3, 8, 3), 0

        def forward(self, x):
            self.steps += 1
            torch.rand(3)
            raise RuntimeError("out of coffee\nsecond line")

    model = Raises().train(training)
    called = []
    model.conv.register_forward_hook(lambda *args: called.append(1))
    for look in verbs(model):
        with untouched(model), pytest.raises(FoveateError, match="out of coffee") as caught:
            look()
        assert "\n" not in str(caught.value)
    assert called == []


def test_a_wrong_size_is_said(blocks, untouched):
    with untouched(blocks), pytest.raises(FoveateError, match=r"1 x 32 x 32 .*expected input.* to have 3 channels"):
        fv.sites(blocks, (1, 32, 32))


@pytest.mark.parametrize("size", [0, -3, (), (3, 4, 5, 6), 2.5, "224", (3, "x"), True, (3.0, 32, 32)])
def test_no_size_is_refused(size, blocks):
    with pytest.raises(FoveateError, match="input_size=.*write a side"):
        fv.sites(blocks, size)


def test_sizes():
    grey = nn.Sequential(nn.Conv2d(1, 4, 3))
    assert input_size_of(grey) == (1, 224, 224)
    assert input_size_of(grey, 32) == (1, 32, 32)
    assert input_size_of(grey, (32, 48)) == (1, 32, 48)
    assert input_size_of(grey, [3, 32, 48]) == (3, 32, 48)
    grey.pretrained_cfg = {"input_size": (3, 160, 160)}
    assert input_size_of(grey) == (1, 160, 160)  # the convolution knows better


def test_a_model_that_cannot_be_copied_is_refused(blocks):
    blocks.lines = (line for line in ())
    with pytest.raises(FoveateError, match="Blocks cannot be copied.*its attribute 'lines' holds a generator"):
        fv.sites(blocks)
    blocks.lines, blocks.lock = None, threading.Lock()
    assert fv.sites(blocks)


def test_a_feature_map_that_the_model_keeps_is_no_obstacle(blocks):
    blocks.train()
    blocks.kept = blocks.stem(torch.rand(2, 3, 32, 32))  # with a history: deepcopy refuses it
    kept = blocks.kept
    fv.sites(blocks)
    assert blocks.kept is kept
    assert fv.cost(blocks, 32).macs > 0


def test_lazy_modules():
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU())
    for look in verbs(model, 16):
        with pytest.raises(FoveateError, match="lazy layers without weights: run it once"):
            look()
    assert isinstance(model[0], nn.LazyConv2d)
    model(torch.zeros(1, 3, 16, 16))
    assert [site.channels for site in fv.sites(model, 16)] == [8, 8]


def test_a_task_on_a_copy_keeps_random_numbers_and_gets_eval_mode(blocks):
    before = torch.get_rng_state()
    (mode, _), copied = on_a_copy(blocks.train(), lambda net: (net.training, torch.rand(9)))
    assert mode is False
    assert copied is not blocks
    assert torch.equal(torch.get_rng_state(), before)
    assert blocks.training
