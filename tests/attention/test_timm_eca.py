"""timm's ECA and circular ECA: timm's layers to everybody, and one call of a function in C in inference on a CPU."""

import copy
import io
import shutil

import pytest
import timm.layers
import torch
from torch import fx, nn

import foveate as fv
from foveate import registry
from foveate.attention import _timm_eca
from foveate.kernels.gates import op as gates_op

KINDS = {"timm:eca": timm.layers.EcaModule, "timm:ceca": timm.layers.CecaModule}


@pytest.fixture(params=KINDS)
def pair(request):
    """Ours, and timm's with the same weights."""
    torch.manual_seed(0)
    ours, timms = registry.build(request.param, 12).eval(), KINDS[request.param](12).eval()
    timms.load_state_dict(ours.state_dict())
    return ours, timms


@pytest.fixture
def calls(monkeypatch):
    """What came of each question for one call: whether there was an output."""
    seen, ask = [], gates_op.gate_along_channels

    def asked(*given, **more):
        out = ask(*given, **more)
        seen.append(out is not None)
        return out

    monkeypatch.setattr(gates_op, "gate_along_channels", asked)
    return seen


X = torch.randn(2, 12, 5, 7, generator=torch.Generator().manual_seed(1))
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: timm's forward pass serves"
)


@needs_compiler
def test_inference_is_one_call_and_timms_output(pair, calls):
    ours, timms = pair
    for x in (X, X.contiguous(memory_format=torch.channels_last), X[:, :, 1:4, ::2], X.bfloat16()):
        ours, timms = ours.to(x.dtype), timms.to(x.dtype)
        with torch.no_grad():
            found, expected = ours(x), timms(x)
        assert found.dtype == expected.dtype
        assert found.is_contiguous(memory_format=torch.channels_last) or not x.is_contiguous(
            memory_format=torch.channels_last
        )
        bound = 2e-2 if x.dtype is torch.bfloat16 else 1e-6  # timm rounds to bfloat16 after each step
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
    assert calls == [True] * 4


def test_it_is_timms_layer(pair):
    ours, timms = pair
    assert isinstance(ours, type(timms))
    assert repr(ours) == repr(timms)
    assert list(ours.state_dict()) == list(timms.state_dict())
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        assert type(other) is type(ours)
        with torch.no_grad():
            torch.testing.assert_close(other(X), timms(X))
    assert type(registry.build("timm:ecam", 12)) is timm.layers.EcaModule  # two layers: timm's own


def follow_compilation(module):
    graphs = []
    torch._dynamo.reset()
    compiled = torch.compile(module, backend=lambda graph, _: [graphs.append(graph), graph.forward][1], fullgraph=True)
    compiled(X)
    torch._dynamo.reset()
    return [[str(node.target) for node in graph.graph.nodes if node.op.startswith("call")] for graph in graphs]


def follow_export(module):
    return [str(node.target) for node in torch.export.export(module, (X,)).graph.nodes if node.op == "call_function"]


def follow_trace(module):
    return [node.kind() for node in torch.jit.trace(module, X).inlined_graph.nodes() if node.kind().startswith("aten")]


def follow_script(module):
    nodes = torch.jit.script(module).inlined_graph.nodes()
    return sorted(node.kind() for node in nodes if node.kind().startswith("aten"))


def follow_symbolic_trace(module):
    return [(node.op, str(node.target)) for node in fx.symbolic_trace(module).graph.nodes]


def follow_modes(module):
    seen = []

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Names():
        module(X)
    return seen


def follow_profile(module):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(X)
    return sorted(event.key for event in profile.key_averages() if event.key.startswith("aten"))


def follow_children(module):
    seen = []
    handles = [part.register_forward_hook(lambda part, *_: seen.append(type(part))) for part in module.children()]
    module(X)
    for handle in handles:
        handle.remove()
    return seen


def follow_hooks_for_all(module):
    seen = []
    register = nn.modules.module.register_module_forward_hook
    handle = register(lambda part, *_: seen.append(type(part).__name__))
    module(X)
    handle.remove()
    return seen


def follow_vmap(module):
    return torch.vmap(module)(X[None]).tolist()


FOLLOW = {name.removeprefix("follow_"): call for name, call in list(globals().items()) if name.startswith("follow_")}


@pytest.mark.filterwarnings("ignore:`torch.jit:")
@pytest.mark.parametrize("how", FOLLOW)
def test_who_follows_it_sees_what_timms_layer_does(how, pair):
    ours, timms = pair
    with torch.no_grad():
        expected = FOLLOW[how](timms)
        assert expected
        assert FOLLOW[how](ours) == expected


def test_cost_counts_timms_steps(pair):
    ours, timms = pair
    counted = [fv.cost(nn.Sequential(module), input_size=(12, 5, 7)) for module in (ours, timms)]
    assert [each.macs for each in counted[:1]] == [each.macs for each in counted[1:]]
    assert counted[0].params == counted[1].params == 3


def two_layers(module):
    module.act, module.conv2 = nn.ReLU(), nn.Conv1d(1, 1, 1)
    nn.init.constant_(module.conv2.weight, 2.0)
    nn.init.constant_(module.conv2.bias, 0.5)


CHANGES = {
    "another activation": lambda m: setattr(m, "gate", nn.Hardsigmoid()),
    "two layers": two_layers,
    "another stride": lambda m: setattr(m.conv, "stride", (2,)),
    "another dilation": lambda m: setattr(m.conv, "dilation", (2,)),
    "another padding": lambda m: setattr(m.conv, "padding", (2,)),
    "replicated": lambda m: setattr(m.conv, "padding_mode", "replicate"),
    "another margin": lambda m: setattr(m, "padding", 2),
    "a convolution of two dimensions": lambda m: setattr(m, "conv", nn.Conv2d(1, 1, 1)),
    "a weight of another size": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(2, 1, 3))),
    "an even kernel": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(1, 1, 4))),
    "a larger kernel": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(1, 1, 5))),
    "no weight": lambda m: setattr(m.conv, "weight", None),
    "weights of another type": lambda m: m.conv.double(),
    "two biases": lambda m: setattr(m.conv, "bias", nn.Parameter(torch.ones(2))),
    "a bias": lambda m: setattr(m.conv, "bias", nn.Parameter(torch.ones(1))),
    "training": lambda m: m.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_layer_is_left_to_timm(change, pair):
    """The output is that of timm's layer with the same change, or the same error."""
    results = []
    for module in pair:
        CHANGES[change](module)
        try:
            with torch.no_grad():
                results.append(module(X))
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            results.append(str(error))
    if isinstance(results[1], str):
        assert results[0] == results[1]
    else:
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_inputs_that_timm_refuses_are_refused_alike(pair):
    for x in (torch.randn(12, 5, 7), X.double(), X.long()):
        messages = []
        for module in pair:
            with pytest.raises((RuntimeError, IndexError)) as caught, torch.no_grad():
                module(x)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_few_channels_for_the_kernel():
    """Zeros reach over both ends; a circle that is shorter than the margin is timm's error."""
    for channels in (1, 2, 3):
        x = torch.randn(2, channels, 3, 3)
        for kind, timms in (
            (_timm_eca.EcaModule, timm.layers.EcaModule),
            (_timm_eca.CecaModule, timm.layers.CecaModule),
        ):
            ours, other = kind(None, 7).eval(), timms(None, 7).eval()
            other.load_state_dict(ours.state_dict())
            results = []
            for module in (ours, other):
                try:
                    with torch.no_grad():
                        results.append(module(x))
                except RuntimeError as error:
                    results.append(str(error))
            if isinstance(results[1], str):
                assert results[0] == results[1]
            else:
                torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
