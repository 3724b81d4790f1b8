"""SE's passes in training against its definition, and who takes them."""

import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.attention import _gates
from foveate.attention.se import SE
from foveate.kernels.dispatch import use_fused
from foveate.kernels.gates import cpu as gates_cpu
from foveate.kernels.gates import excitation

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: the plain definition serves"
)

# One position, rows and columns of one; tails of vectors and of four positions; planes longer than a block; channels of
# one; more than one strip of each kind.
SHAPES = [(2, 32, 7, 9), (1, 16, 1, 1), (3, 5, 1, 6), (1, 3, 5, 1), (1, 1, 4, 4), (1, 6, 40, 57), (1, 130, 19, 23)]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second row": lambda x: torch.cat([x, x], dim=2)[:, :, ::2],
}
DENSE = ["contiguous", "channels_last"]


def laid_out(x, layout):
    return LAYOUTS[layout](x)


def near(found, truth):
    """Within 2e-6 of the whole."""
    assert found.shape == truth.shape
    assert (found.double() - truth).norm() <= 2e-6 * truth.norm().clamp(min=1e-30)


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """Two, also for small inputs."""
    monkeypatch.setattr(gates_cpu, "_GRAIN", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def taken(monkeypatch):
    """How often SE took its passes, which are there for small inputs too."""
    seen, call = [], excitation.excite
    monkeypatch.setattr(_gates, "_TRAINED_ELEMENTS", 0)
    monkeypatch.setattr(excitation, "excite", lambda *given: [seen.append(1), call(*given)][1])
    return seen


def gradients(module, x, weights):
    """The result, and the gradients of x and of each parameter that has one."""
    x = x.detach().requires_grad_(x.requires_grad)
    out = module(x)
    wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
    return out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)


def compared(shape, layout, bias=True):
    """The result and each gradient, with those of the definition in float64."""
    module = SE(shape[1], reduction=2, bias=bias)
    x, weights = laid_out(torch.randn(shape), layout).requires_grad_(), laid_out(torch.randn(shape), layout)
    found = gradients(module, x, weights)
    with use_fused(False):
        truths = gradients(module.double(), x.double(), weights.double())
    return zip(found, truths, strict=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_and_gradients_are_the_definitions(layout, bias, taken, nan_memory):
    for shape in SHAPES:
        for case in compared(shape, layout, bias):
            near(*case)
    assert len(taken) == (len(SHAPES) if layout in DENSE else 0)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(threads, taken):
    torch.set_num_threads(threads)
    for layout in DENSE:
        for shape in ((1, 6, 40, 57), (2, 70, 13, 9)):
            for case in compared(shape, layout):
                near(*case)


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_gradients(layout, bias):
    module = SE(6, reduction=2, bias=bias).double()
    x = laid_out(torch.randn(2, 6, 3, 4, dtype=torch.float64), layout).requires_grad_()
    given = (x, module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias)
    assert torch.autograd.gradcheck(excitation.excite, given)
    assert torch.autograd.gradgradcheck(excitation.excite, given)


def test_several_gradients_at_once(taken):
    module, x = SE(4, reduction=2), torch.randn(1, 4, 3, 2, requires_grad=True)
    wanted = torch.eye(x.numel()).view(-1, *x.shape)
    (found,) = torch.autograd.grad(module(x), x, wanted, is_grads_batched=True)
    assert taken
    with use_fused(False):
        (truth,) = torch.autograd.grad(module(x), x, wanted, is_grads_batched=True)
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("frozen", ["x", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "all but x"])
def test_what_is_frozen_has_no_gradient(frozen, taken):
    module, x = SE(8, reduction=2), torch.randn(3, 8, 5, 4, requires_grad=frozen != "x")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(frozen not in (name, "all but x"))
    weights = torch.randn(x.shape)
    found = gradients(module, x, weights)
    assert taken
    with use_fused(False):
        truth = gradients(module, x, weights)
    assert len(found) == len(truth)
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("layout", DENSE)
def test_gradients_that_lie_in_memory_in_another_way(layout, taken):
    module, x = SE(8, reduction=2), laid_out(torch.randn(2, 8, 5, 4), layout).requires_grad_()
    for loss in (
        lambda out: out.sum(),
        lambda out: out.flatten(2).transpose(1, 2).square().sum(),
        lambda out: out.mean(),
    ):
        (found,) = torch.autograd.grad(loss(module(x)), x)
        with use_fused(False):
            (truth,) = torch.autograd.grad(loss(module(x)), x)
        torch.testing.assert_close(found, truth)
    assert len(taken) == 3


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_where_the_definition_has_it(value, layout, taken):
    module, weights = SE(8, reduction=2), laid_out(torch.randn(2, 8, 5, 4), layout)
    for of_gradient in (False, True):
        x, given = laid_out(torch.randn(2, 8, 5, 4), layout), weights.clone()
        (given if of_gradient else x)[1, 2, 3, 1] = value
        x.requires_grad_()
        found = gradients(module, x, given)
        with use_fused(False):
            truth = gradients(module, x, given)
        for one, other in zip(found, truth, strict=True):
            assert torch.equal(one.isfinite(), other.isfinite())
    assert len(taken) == 2


NOT_TAKEN = {
    "small": (lambda module: None, lambda x: x, 1 << 20),
    "of another type": (lambda module: module.double(), lambda x: x.double(), 0),
    "a hook": (lambda module: module.fc1.register_forward_hook(lambda *_: None), lambda x: x, 0),
    "every second row": (lambda module: None, lambda x: x[:, :, ::2], 0),
    "a type of its own": (lambda module: module.fc2.double(), lambda x: x, 0),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_the_passes_do_not_know_is_left_to_torch(name, taken, monkeypatch):
    change, see, least = NOT_TAKEN[name]
    module, x = SE(8, reduction=2), torch.randn(2, 8, 5, 4, requires_grad=True)
    change(module)
    monkeypatch.setattr(_gates, "_TRAINED_ELEMENTS", least)
    if name == "a type of its own":
        with pytest.raises(RuntimeError, match="dtype"):
            module(see(x))
    else:
        module(see(x)).sum().backward()
    assert not taken


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
def test_what_follows_the_operations_sees_the_definition(taken):
    module, x = SE(8, reduction=2), torch.randn(2, 8, 5, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        module(x)
    assert counter.get_total_flops() == 2 * 2 * 2 * 8 * 4
    with torch.autocast("cpu", torch.bfloat16):
        module(x)
    with torch.no_grad():
        module(x)
    torch.jit.trace(module, x)
    torch.func.grad(lambda x: module(x).sum())(x)
    with use_fused(False):
        module(x)
    assert not taken
    module.eval()(x).sum().backward()
    assert taken
