"""Whatever was put into a model, looking at it runs a copy: the model does not change, or is refused with a reason."""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import foveate as fv
from foveate.errors import FoveateError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().train()


held = None  # a global name that refers to the model, as in a notebook


def by_closure(net):
    before = net.forward
    net.forward = lambda x: before(x) * 2


def by_default(net):
    net.forward = lambda x, model=net: Net.forward(model, x) * 2


def by_global(net):
    global held
    held = net

    def forward(x):
        return held.fc(held.block(held.stem(x)).mean((2, 3)))

    net.forward = forward


def by_decorator(net):
    net.forward = torch.no_grad()(net.forward)


def by_functions_in_functions(net):
    def inner(x):
        return net.stem(x)

    def outer(x):
        return net.fc(net.block(inner(x)).mean((2, 3)))

    net.forward = outer


def by_a_part(net):
    before = net.block.forward
    net.block.forward = lambda x: before(x) + net.stem[1](x)


def by_a_table(net):
    net.steps = {"first": [lambda x: net.stem(x)], "then": net.block.forward}
    net.forward = lambda x: net.fc(net.steps["then"](net.steps["first"][0](x)).mean((2, 3)))


def by_compile(net):
    net.forward = torch.compile(net.forward, backend="eager")


def by_a_compiled_part(net):
    net.stem = torch.compile(net.stem, backend="eager")


def by_a_part_compiled_in_place(net):
    net.stem.compile(backend="eager")


def by_a_computing_hook(net):
    net.block.register_forward_hook(lambda _m, _a, out: out + net.stem[1](out))


def with_a_lock_and_history(net):
    net.lock, net.kept = threading.Lock(), {"maps": [torch.ones(2, requires_grad=True) * 2]}


def with_weight_norm(net):
    with pytest.warns(FutureWarning):
        weight_norm(net.block[0])
    parametrizations.weight_norm(net.block[3])
    spectral_norm(net.stem[0])


WAYS = [
    *(by_closure, by_default, by_global, by_decorator, by_functions_in_functions, by_a_part, by_a_table, by_compile),
    *(by_a_compiled_part, by_a_part_compiled_in_place, by_a_computing_hook, with_a_lock_and_history, with_weight_norm),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_of_the_model_changes(way, net, untouched):
    way(net)
    compiled = "compile" in way.__name__
    with untouched(net):
        listed = fv.sites(net, 16)
        assert {site.channels for site in listed} == {8}
        assert fv.cost(net, 16).macs > 0
        if compiled:
            with pytest.raises(FoveateError, match="insert first, then compile"):
                fv.insert(net, "se after block.3", input_size=16)
        else:
            fv.remove(fv.insert(net, "se after block.3", input_size=16))


class Elsewhere:
    """Holds a model where no copy finds it."""

    __slots__ = ("model",)

    def __init__(self, model):
        self.model = model

    def __deepcopy__(self, memo):
        return self

    def __call__(self, x):
        return self.model(x)


def test_what_cannot_be_copied_is_refused_before_it_runs(net, untouched, tmp_path):
    net.fc.away = Elsewhere(net.block)
    net.forward = lambda x: net.fc(net.fc.away(net.stem(x)).mean((2, 3)))
    with untouched(net), pytest.raises(FoveateError, match="would run its module 'block' itself, so it is not run"):
        fv.sites(net, 16)
    file = (tmp_path / "log").open("w")
    plain = Net()
    plain.block.log = file
    said = r"its attribute 'block\.log' holds a TextIOWrapper"
    with untouched(plain), pytest.raises(FoveateError, match=said) as error:
        fv.sites(plain, 16)
    assert "input_size" not in str(error.value)
    file.close()


def test_buffers_that_a_function_changes_come_back(net):
    class Hidden(Elsewhere):
        def __call__(self, x):
            self.model.running_mean.add_(1)
            return x

    hidden = Hidden(net.stem[1])
    net.forward = lambda x: net.fc(hidden(net.block(net.stem(x))).mean((2, 3)))
    before = net.stem[1].running_mean.clone()
    with pytest.raises(FoveateError, match="would run the model itself"):
        fv.sites(net, 16)
    assert torch.equal(net.stem[1].running_mean, before)


def test_lazy_buffers_are_said(net):
    net.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyBatchNorm2d(affine=False))
    with pytest.raises(FoveateError, match="lazy layers without weights: run it once"):
        fv.sites(net, 16)
    net(torch.rand(2, 3, 16, 16))
    assert fv.sites(net, 16)


def test_shapes_of_a_network_that_needs_data_are_not_computed():
    """Layers are not run where only shapes are asked; where values matter they are."""

    class Needy(Net):
        needs = False

        def forward(self, x):
            x = self.stem(x)
            if float(x.detach().abs().sum()) < 0 or (self.needs and float(x.abs().sum()) == 0):
                raise ValueError("zeros")
            return self.fc(self.block(x).mean((2, 3)))

    model = Needy()
    assert {site.name for site in fv.sites(model, 16)}
    model.needs = True
    assert {site.name for site in fv.sites(model, 16)}
    with torch.no_grad():
        model.stem[1].bias.zero_()
        model.stem[0].bias.zero_()
    with pytest.raises(FoveateError, match="zeros"):
        fv.sites(model, 16)


def test_a_part_of_torchscript_is_looked_at(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        net.block = torch.jit.trace(net.eval().block, torch.rand(1, 8, 14, 14))
    assert fv.sites(net, 16)
    assert fv.plan_of(net) is None
    assert fv.plan_of(net.block) is None
    assert fv.cost(net, 16).macs > 0
