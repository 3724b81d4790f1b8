"""Mechanisms by rows against their definitions, and what keeps them from it."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveate import registry
from foveate.kernels import few_positions
from foveate.kernels.dispatch import use_fused

SPECS = (
    "position",
    "position(reduction=1)",
    "non_local",
    "non_local(bn=False)",
    "non_local(scale=True)",
    "non_local(reduction=3)",
    "double",
    "double(c_m=3, c_n=5)",
)
SHAPES = ((1, 16, 7, 7), (2, 16, 5, 9), (3, 16, 1, 1), (1, 16, 1, 13), (2, 16, 9, 8))
FORMATS = (torch.contiguous_format, torch.channels_last)


def make(spec):
    torch.manual_seed(0)
    module = registry.build(spec, 16).eval()
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else 0.4 * torch.randn_like(tensor))
    return module


@pytest.fixture
def taken(monkeypatch):
    """How often something was projected by rows."""
    calls = []
    project = few_positions.project
    monkeypatch.setattr(few_positions, "project", lambda *given: (calls.append(1), project(*given))[1])
    return calls


def gradients(module, x, weights):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = module(x)
    named = dict(module.named_parameters())
    return out, torch.autograd.grad((out * weights).sum(), [x, *named.values()])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_rows_give_the_definition(spec, shape, memory_format, training, taken):
    module, exact = make(spec), make(spec).double()
    if training and shape[0] * shape[2] * shape[3] > 1:
        module.train()
        exact.train()
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    weights = torch.randn(shape)
    out, found = gradients(module, x, weights)
    few = not spec.startswith("double") or shape[2] * shape[3] < 4  # double has fewer products for more positions
    assert len(taken) == ((3 if spec.startswith("position") else 4) if few else 0)
    with use_fused(False):
        plain, _ = gradients(module.eval(), x, weights)
        true, expected = gradients(exact, x.double(), weights.double())
    assert len(taken) <= 4
    assert out.stride() == plain.stride() or 1 in shape[2:]
    torch.testing.assert_close(out.double(), true, rtol=1e-5, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_of_the_rows_own_steps(spec, taken, monkeypatch):
    """In float64, which only a test lets them take."""
    monkeypatch.setattr(few_positions, "takes_rows", lambda *_: True)
    module = make(spec).double()
    x = torch.randn(2, 16, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))
    if spec in ("position", "double", "double(c_m=3, c_n=5)"):  # torch has no second derivative of its attention
        assert torch.autograd.gradgradcheck(module, (x,))
    assert taken


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet:UserWarning")  # torch's own
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # widths of rows are channels, and stay as they are
@pytest.mark.parametrize("spec", ["position", "non_local", "double"])
def test_what_wants_another_way_takes_the_definition(spec, monkeypatch):
    module, x = make(spec), torch.randn(2, 16, 1, 3)

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(few_positions, "project", never)
    with pytest.raises(AssertionError):
        module(x)
    module(torch.randn(1, 16, 41, 25))  # 1025 positions
    module(torch.randn(350, 16, 1, 3))  # 1050 in all
    module(torch.zeros(0, 16, 5, 5))
    module.double()(x.double())
    module.float()
    with use_fused(False):
        module(x)
    with torch.autocast("cpu", torch.bfloat16):
        module(x)
    with FlopCounterMode(display=False):
        module(x)
    torch.func.vmap(module)(x.unsqueeze(1))
    torch.jit.trace(module, x, check_trace=False)
    torch.export.export(module, (x,))
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    handle = first.register_forward_hook(lambda *_: None)
    module(x)
    handle.remove()
    with pytest.raises(AssertionError):
        module(x)
    with pytest.raises(RuntimeError, match="expected input"):
        module(torch.randn(2, 15, 1, 3))
    bias = first.bias.detach()
    del first.bias
    first.bias = bias  # an attribute, and no parameter any more
    module(x)
    del first.bias
    first.register_parameter("bias", nn.Parameter(bias))
    first._conv_forward = lambda x, weight, bias: nn.Conv2d._conv_forward(first, x, 2 * weight, bias)
    module(x)
    del first._conv_forward
    with pytest.raises(AssertionError):
        module(x)
    first.bias = nn.Parameter(bias[:1])
    with pytest.raises(RuntimeError, match="bias"):
        module(x)
    first.bias = nn.Parameter(bias)
    first.padding = (1, 1)
    with pytest.raises(RuntimeError):
        module(x)
