"""1x1 convolutions as products in a compiled network: which ones, and that they give the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.training.speed.compilation import CompiledCalls
from foveate.training.speed.products import rewrite, with_products


class Net(nn.Module):
    """What can be a product, and what cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.with_bias, self.without = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1, bias=False)
        self.strided, self.grouped = nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1, groups=2)
        self.padded, self.same = nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 1, padding="same")
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

    def forward(self, x):
        x = self.without(self.with_bias(self.stem(x)).relu())
        x = F.conv2d(x, weight=self.weight, stride=(1, 1))
        return self.same(self.padded(self.grouped(self.strided(x))))


@pytest.fixture
def compiled():
    """A function that compiles a module for an input; gives the call and the functions of its graph as they are run."""

    def of(module):
        torch._dynamo.reset()
        kinds = []

        def backend(graph, _):
            kinds.extend(node.target for node in rewrite(graph).graph.nodes if node.op == "call_function")
            return graph.forward

        return torch.compile(module, backend=backend, dynamic=False), kinds

    return of


def result(call, x, weights):
    parameters = list(weights.parameters())
    out = call(x)
    return out, torch.autograd.grad(out.square().sum(), [x, *parameters])


@pytest.mark.parametrize("images", [2, 5])
@pytest.mark.parametrize("training", [False, True])
def test_the_same_outputs_strides_and_gradients(compiled, images, training):
    torch.manual_seed(0)
    module = nn.Sequential(Net(), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last).train(training)
    x = torch.randn(images, 3, 9, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    call, kinds = compiled(module)
    out, gradients = result(call, x, module)
    expected, others = result(module, x, module)
    assert kinds.count(F.linear) == 3
    assert kinds.count(torch.conv2d) == 5
    assert out.stride() == expected.stride()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["contiguous", "one image", "double", "bfloat16", "one image without its batch"])
def test_what_else_stays_a_convolution(compiled, change):
    module, x = Net(), torch.randn(2, 3, 6, 5)
    if change != "contiguous":
        x, module = x.contiguous(memory_format=torch.channels_last), module.to(memory_format=torch.channels_last)
    if change in ("double", "bfloat16"):
        x, module = x.to(getattr(torch, change)), module.to(getattr(torch, change))
    call, kinds = compiled(module)
    call(x[0] if "without" in change else x[:1] if "image" in change else x)
    assert kinds.count(torch.conv2d) == 8
    assert F.linear not in kinds


def test_one_channel_lies_in_either_format(compiled):
    """A 1x1 convolution of it lies as PyTorch says, and what follows may count on that."""
    module = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 1, 1), nn.Conv2d(1, 8, 1))
    x = torch.randn(2, 1, 6, 5)
    call, kinds = compiled(module)
    assert call(x).stride() == module(x).stride()
    assert F.linear not in kinds


def test_hooks_see_what_they_saw(compiled):
    module = Net().to(memory_format=torch.channels_last)
    module.with_bias.register_forward_hook(lambda _module, _args, out: 2 * out)
    x = torch.randn(2, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    call, kinds = compiled(module)
    torch.testing.assert_close(call(x), module(x), rtol=1e-4, atol=1e-5)
    assert F.linear in kinds


def test_fit_compiles_with_products(monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "compile", lambda call, backend, dynamic: taken.append(backend))
    for backend in ("inductor", "eager", ""):
        CompiledCalls(nn.Identity(), backend, 8)
    assert taken == [with_products, "eager"]


def test_products_go_to_inductor(monkeypatch):
    given, others = [], torch._dynamo.lookup_backend

    def lookup_backend(name):
        if name != "inductor":
            return others(name)

        def compiler(graph, _):
            given.extend(node.target for node in graph.graph.nodes)
            return graph.forward

        return compiler

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lookup_backend)
    torch._dynamo.reset()
    module = nn.Conv2d(4, 8, 1).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(torch.compile(module, backend=with_products)(x), module(x), rtol=1e-4, atol=1e-5)
    assert F.linear in given
    assert torch.conv2d not in given
