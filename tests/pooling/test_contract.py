"""Every registered pool keeps the contract: options, shapes, dtypes, memory formats, gradients, copies, export."""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from foveate import registry
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.errors import FoveateError
from foveate.explanations.attention import split_map
from foveate.kernels.dispatch import use_fused
from foveate.spec import Spec

NAMES = registry.names("pooling")
VARIANTS = [
    *NAMES,
    "attention_pool(classes=3)",
    "attention_pool(classes=3, heads=2, norm=False)",
]
PAGES = Path(__file__).parents[2] / "docs" / "pooling"
CHANNELS = 16
AXES = {"b", "h", "k", "n", "w"}  # b batch, h w positions, k heads, n classes
# A number added to all scores changes no softmax, so these have no gradient beyond rounding.
WITHOUT_GRADIENT = {"attention_pool": {"key.bias"}}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=VARIANTS)
def spec(request):
    return request.param


@pytest.fixture
def make(randomise):
    """Builds a pool with parameters as after training, in eval mode."""
    return lambda spec: randomise(registry.build(spec, CHANNELS, kind="pooling")).float().eval()


@pytest.fixture
def x():
    return torch.randn(4, CHANNELS, 6, 5, generator=torch.Generator().manual_seed(0))


def vectors(module: nn.Module, batch: int) -> tuple[int, ...]:
    classes = getattr(module, "classes", None)
    return (batch, CHANNELS) if classes is None else (batch, classes, CHANNELS)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_there_are_pools():
    assert {"gap", "attention_pool"} <= set(NAMES)


def test_constructor_is_a_schema(name):
    parameters = list(inspect.signature(registry.find(name, "pooling")).parameters.values())
    assert parameters[0].name == "channels"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[1:])
    assert all(isinstance(p.default, bool | int | float | str | None) for p in parameters[1:])


def test_page_names_every_option_and_the_cost_at_512(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    for option in registry.options(name, "pooling"):
        assert f"| `{option}` |" in page, option
    module = registry.build(name, 512, kind="pooling").eval()
    params = sum(parameter.numel() for parameter in module.parameters())
    macs = count_operations(module.to("meta"), (512, 14, 14))[""].macs
    assert re.search(rf"(?<![\d,]){params:,} parameters", page)
    assert re.search(rf"(?<![\d,]){macs:,} MACs", page)


@pytest.mark.parametrize("height,width", [(7, 11), (14, 14), (1, 5), (5, 1), (1, 1), (33, 8)])
def test_any_size_gives_a_vector(make, spec, height, width):
    module = make(spec)
    out = module(torch.randn(2, CHANNELS, height, width))
    assert out.shape == vectors(module, 2)
    assert out.isfinite().all()


@pytest.mark.parametrize("height,width", [(7, 11), (1, 1)])
def test_map_has_the_declared_axes_and_can_be_drawn(make, spec, height, width):
    module = make(spec)
    axes = module.map_axes.split()
    assert axes[0] == "b"
    assert set(axes) <= AXES
    attention = module.attend(torch.randn(3, CHANNELS, height, width))
    assert attention.ndim == len(axes)
    sizes = {"b": 3, "h": height, "w": width, "n": getattr(module, "classes", 1), "k": getattr(module, "heads", 1)}
    assert attention.shape == tuple(sizes[axis] for axis in axes)
    assert attention.min() >= 0
    maps, channel_weights = split_map(attention, module.map_axes, "pool")
    assert len(maps) == attention[0].numel() // (height * width)
    assert all(one.values.shape == (3, height, width) for one in maps)
    assert not channel_weights


def test_unknown_option_is_refused(name):
    with pytest.raises(FoveateError, match="has no option 'nonsense'"):
        registry.build(Spec(name, (("nonsense", 1),)), CHANNELS, kind="pooling")


def test_images_of_a_batch_do_not_see_each_other(make, spec, x):
    module = make(spec)
    close(module(x), torch.cat([module(x[i : i + 1]) for i in range(len(x))]))
    close(module.attend(x), torch.cat([module.attend(x[i : i + 1]) for i in range(len(x))]))


def test_positions_may_be_shuffled(make, spec, x):
    module, order = make(spec), torch.randperm(30)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    close(module(shuffled), module(x))
    close(module.attend(shuffled).flatten(-2), module.attend(x).flatten(-2)[..., order])


def test_both_memory_formats_agree(make, spec, x):
    module, last = make(spec), x.to(memory_format=torch.channels_last)
    close(module(last), module(x))
    close(module.attend(last), module.attend(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(make, spec, x, dtype):
    module = make(spec)
    expected, weights = module(x), module.attend(x)
    other = copy.deepcopy(module).to(dtype)
    out, attention = other(x.to(dtype)), other.attend(x.to(dtype))
    assert out.dtype == attention.dtype == dtype
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(attention.float(), weights, rtol=tolerance, atol=tolerance)


def test_autocast(make, spec, x):
    module = make(spec)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
        with torch.no_grad(), use_fused(False):
            expected = module(x)
        with torch.no_grad():
            found = module(x)
    torch.testing.assert_close(out.float(), module(x), rtol=0.1, atol=0.1)
    assert out.dtype == found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


def test_every_parameter_and_the_input_get_a_gradient(make, spec, x):
    module, x = make(spec).train().double(), x.double().requires_grad_()
    (module(x) * torch.randn(vectors(module, len(x)), dtype=torch.float64)).sum().backward()
    assert x.grad.abs().amax((1, 2, 3)).min() > 1e-6
    silent = WITHOUT_GRADIENT.get(Spec.parse(spec).name, set())
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        size = parameter.grad.abs().max()
        assert size < 1e-12 if key in silent else size > 1e-6, key


def test_input_is_not_changed(make, spec, x):
    before = x.clone()
    make(spec).train()(x)
    assert torch.equal(x, before)


def test_deepcopy_and_state_dict(make, spec, x):
    module = make(spec)
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    other = registry.build(spec, CHANNELS, kind="pooling").eval()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


def test_runs_without_data(make, spec):
    module = make(spec).to("meta")
    assert module(torch.empty(2, CHANNELS, 6, 5, device="meta")).shape == vectors(module, 2)


def test_torch_export(make, spec, x):
    module = make(spec)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    other = torch.randn(7, CHANNELS, 6, 5)
    close(program.module()(other), module(other))


def test_compiles_in_one_graph(make, spec, x):
    torch._dynamo.reset()
    module = make(spec)
    close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is not supported in Python 3.14:DeprecationWarning")
def test_script_works_or_says_why_not(make, spec, x):
    module = make(spec)
    try:
        scripted = torch.jit.script(module)
    except FoveateError as error:
        assert "torch.jit.trace, torch.compile or torch.export" in str(error)
        return
    for given in (x, x[:, :, :3]):
        close(scripted(given), module(given))
