"""The gates' CUDA backend where there is no GPU: when it is taken, and why not."""

import logging
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from foveate.attention.cbam import CBAM, ORDERS
from foveate.attention.se import SE
from foveate.kernels import dispatch as backends
from foveate.kernels.dispatch import use_fused
from foveate.kernels.gates import op as gates_op
from foveate.kernels.gates import triton_launch as gates_triton
from foveate.kernels.ulsam import triton_launch as ulsam_triton

HERE = Path(__file__).parent


@pytest.fixture
def asked_for_the_first_time():
    caches = (ulsam_triton.why_not, ulsam_triton._log, backends.ready)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_without_a_device_one_line_says_so(asked_for_the_first_time, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with caplog.at_level(logging.INFO, logger="foveate"):
        for family in ("gates", "ulsam"):
            assert backends.ready("cuda", torch.float32, family).reason.endswith("no CUDA device is available")
    assert len(caplog.messages) == 1


def test_devices_and_types_that_are_taken(asked_for_the_first_time, monkeypatch):
    monkeypatch.setattr(gates_triton, "why_not", lambda dtype: "")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert backends.ready("cuda", dtype, "gates").backend == gates_triton.__name__
    assert backends.ready("cuda", torch.float64, "gates").reason.endswith("not float64")


# ---- which calls go in passes: on a CPU, with the plain definitions of the passes ----


NAMES = ("pool_positions", "pool_channels", "gate")


@pytest.fixture
def passes(monkeypatch, asked_for_the_first_time):
    """The passes that were taken, where the CPU has a backend."""
    seen = []
    definitions = {name: getattr(gates_op, f"{name}_plain") for name in NAMES}
    types = (torch.float32, torch.float64)
    backend = SimpleNamespace(TYPES=types, why_not=lambda _: "", **definitions)
    monkeypatch.setitem(sys.modules, "backend_of_the_cpu", backend)
    monkeypatch.setitem(backends.GATES, "cpu", "backend_of_the_cpu")
    for name in NAMES:
        call = getattr(gates_op, name)
        monkeypatch.setattr(gates_op, name, lambda *a, name=name, call=call, **k: [seen.append(name), call(*a, **k)][1])
    return seen


def build(kind, **options):
    torch.manual_seed(0)
    module = kind(8, reduction=4, **options).eval()
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else torch.randn_like(tensor))
    return module


EVERY = [(SE, {}), (SE, {"bias": False})] + [
    (CBAM, {"order": order, "channel_pool": pool}) for order in ORDERS for pool in ("both", "avg", "max")
]


@pytest.mark.parametrize("kind,options", EVERY)
def test_the_passes_are_the_definition(kind, options, passes):
    module, x = build(kind, **options).double(), torch.randn(3, 8, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        out = module(x)
        order, taken = options.get("order", "channel"), list(passes)
        expected = {"channel-spatial": 3, "spatial-channel": 3, "parallel": 3, "channel": 2, "spatial": 2}[order]
        assert len(taken) == expected
        assert taken[-1] == "gate"
        with use_fused(False):
            truth = module(x)
        assert passes == taken
    assert (out - truth).abs().max() <= 1e-12
    attention = module.attend(x)
    assert (attention.view(3, 8, *attention.shape[2:] or (1, 1)) * x - out).abs().max() <= 1e-12


def test_parameters_and_inputs_without_gradients_may_go_in_passes_while_gradients_are_on(passes):
    module, x = build(SE).requires_grad_(False), torch.randn(2, 8, 3, 3)
    module(x)
    assert passes
    passes.clear()
    module(x.requires_grad_())
    module.requires_grad_()(x.detach())
    assert not passes


def replaced(module):
    module.fc2 = nn.Sequential(module.fc2)


def hooked(hook):
    return lambda module: getattr(module.fc1, hook)(lambda *_: None)


OTHERWISE = {
    "training": lambda module: module.train(),
    "another class": replaced,
    "another method": lambda module: setattr(module, "attend", module.attend),
    "weights from elsewhere": lambda module: nn.utils.parametrize.register_parametrization(
        module.fc1, "weight", nn.Identity()
    ),
    **{
        hook: hooked(hook)
        for hook in (
            *("register_forward_hook", "register_forward_pre_hook"),
            *("register_full_backward_hook", "register_full_backward_pre_hook"),
        )
    },
}


@pytest.mark.parametrize("kind", [SE, CBAM])
@pytest.mark.parametrize("change", OTHERWISE)
def test_a_module_that_is_not_as_built_is_the_definition(change, kind, passes):
    module, x = build(kind), torch.randn(2, 8, 3, 3)
    with torch.no_grad():
        module(x)
        assert passes
        passes.clear()
        OTHERWISE[change](module)
        module(x)
    assert not passes


def test_a_hook_sees_what_the_definition_gives_it(passes):
    module, x, seen = build(CBAM), torch.randn(2, 8, 3, 3), []
    module.fc1.register_forward_hook(lambda _module, args, _out: seen.append(args[0].shape))
    with torch.no_grad():
        module(x)
    assert seen == [(2, 8), (2, 8)]


def test_a_convolution_that_squeezes_is_the_definition(passes):
    with torch.no_grad():
        build(CBAM, spatial="conv")(torch.randn(2, 8, 3, 3))
    assert not passes


@pytest.mark.parametrize("kind", [SE, CBAM])
def test_what_transforms_or_traces_gets_the_definition(kind, passes):
    module, x = build(kind), torch.randn(2, 8, 3, 3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks, torch's own deprecations
        torch.export.export(module, (x,))
        torch.jit.trace(module, x, check_trace=False)  # the check runs the module as it is
        torch.vmap(module)(x[None])
        torch.func.jvp(module, (x,), (x,))
        torch.compile(module, backend="eager", fullgraph=True)(x)
    assert not passes


def test_an_empty_batch(passes):
    with torch.no_grad():
        assert build(SE)(torch.randn(0, 8, 3, 3)).shape == (0, 8, 3, 3)
    assert not passes


def test_the_operations_on_a_device_without_a_backend():
    x = torch.randn(2, 3, 4, 5)
    channels, positions = torch.randn(2, 3), torch.randn(2, 1, 4, 5)
    torch.library.opcheck(torch.ops.foveate.pool_positions.default, (x, positions, True, True))
    torch.library.opcheck(torch.ops.foveate.pool_channels.default, (x, channels))
    torch.library.opcheck(torch.ops.foveate.gate.default, (x, channels, positions))
