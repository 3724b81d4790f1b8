"""Every registered mechanism keeps the contract: options, shapes, dtypes, memory formats, gradients, copies, export."""

import copy
import inspect
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from foveate import registry
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention import se
from foveate.errors import FoveateError
from foveate.kernels.dispatch import use_fused
from foveate.spec import Spec

NAMES = registry.names("attention")
WITH_MAPS = tuple(name for name in NAMES if hasattr(registry.find(name), "attend"))
PAGES = Path(__file__).parents[2] / "docs" / "attention"
CHANNELS = 16
# b batch, c channels, g groups, h w positions, k heads, n gathered features, q what looks: a position or a channel
AXES = {"b", "c", "g", "h", "k", "n", "q", "w"}


def make(name: str, channels: int = CHANNELS, seed: int = 0, **options) -> nn.Module:
    """A module as after training: no statistics at 0 and 1, no parameter that is 0 throughout or a single number.

    A gamma that starts at 0 hides what stands behind it from every comparison and every gradient.
    """
    torch.manual_seed(seed)
    module = registry.build(Spec(name, tuple(options.items())), channels).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() == 1 or not parameter.any():
                parameter.normal_()
    for buffer_name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in buffer_name else 0))
    return module


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_there_are_mechanisms():
    assert {"ulsam", "se", "cbam"} <= set(NAMES)


def test_constructor_is_a_schema(name):
    parameters = list(inspect.signature(registry.find(name)).parameters.values())
    assert parameters[0].name == "channels"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[1:])
    assert all(isinstance(p.default, bool | int | float | str | None) for p in parameters[1:])


# Each option of whole numbers at the least value that the constructor's check lets pass.
LEAST = {
    "bam": {"reduction": 1, "dilation": 1},
    "cbam": {"reduction": 1, "kernel_size": 1},
    "double": {"c_m": 1, "c_n": 1},
    "non_local": {"reduction": 1},
    "position": {"reduction": 1},
    "se": {"reduction": 1},
    "sparse": {"heads": 1},
    "ulsam": {"groups": 1},
}


@pytest.mark.parametrize("least", LEAST, ids=str)
def test_the_least_value_of_an_option_is_allowed_and_one_less_is_refused(least):
    x = torch.randn(2, CHANNELS, 5, 4)
    for option, value in LEAST[least].items():
        assert make(least, **{option: value})(x).shape == x.shape
        with pytest.raises(FoveateError, match=rf"\b{option}="):
            make(least, **{option: value - 1})


def test_page_names_every_option_and_the_cost_at_512(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    for option in registry.options(name):
        assert f"| `{option}` |" in page, option
    module = registry.build(name, 512).eval()
    params = sum(parameter.numel() for parameter in module.parameters())
    macs = count_operations(module.to("meta"), (512, 14, 14))[""].macs
    assert f"{params:,} parameter" in page
    assert f"{macs:,} MACs" in page


def test_any_size_gives_the_same_shape(name):
    module = make(name)
    for sides in ((7, 11), (14, 14), (1, 5), (5, 1), (1, 1), (2, 2), (33, 8)):
        x = torch.randn(2, CHANNELS, *sides)
        out = module(x)
        assert out.shape == x.shape, sides
        assert out.isfinite().all(), sides


def test_only_the_control_has_no_map():
    assert set(NAMES) - set(WITH_MAPS) == {"identity"}
    assert not hasattr(registry.find("identity"), "map_axes")


@pytest.mark.parametrize("name", WITH_MAPS)
def test_map_has_the_declared_axes(name):
    module = make(name)
    axes = module.map_axes.split()
    assert set(axes) <= AXES
    assert axes[0] == "b"
    for sides in ((7, 11), (4, 4)):
        map_has_the_axes(module, axes, *sides)


def map_has_the_axes(module, axes, height, width):
    x = torch.randn(3, CHANNELS, height, width)
    attention = module.attend(x)
    assert attention.ndim == len(axes)
    looking = height * width if "h" in axes else CHANNELS
    sizes = {"b": 3, "h": height, "w": width, "q": looking}
    for axis, size in zip(axes, attention.shape, strict=True):
        assert size == sizes.get(axis, size), axis
        if axis == "c":
            assert size in (1, CHANNELS)


def test_unknown_option_is_refused(name):
    with pytest.raises(FoveateError, match="has no option 'nonsense'"):
        registry.build(f"{name}(nonsense=1)", CHANNELS)


def test_images_of_a_batch_do_not_see_each_other(name):
    module = make(name)
    x = torch.randn(4, CHANNELS, 6, 5)
    whole = module(x)
    alone = torch.cat([module(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


def test_both_memory_formats_agree_and_are_kept(name):
    module = make(name)
    x = torch.randn(2, CHANNELS, 6, 5)
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(module(x), module(last), rtol=1e-5, atol=1e-6)
    assert module(x).is_contiguous()
    assert module(last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_one_image_has_the_strides_of_many(name, memory_format):
    """torch's batch norm gives wrong gradients for one image whose own stride is another than that of many."""
    module = make(name)
    x = torch.randn(2, CHANNELS, 6, 5).contiguous(memory_format=memory_format)
    norm, wanted = nn.BatchNorm2d(CHANNELS).eval(), torch.randn(1, CHANNELS, 6, 5)
    for fused, followed in itertools.product((True, False), repeat=2):
        one = x[:1].clone(memory_format=torch.preserve_format).requires_grad_()
        with use_fused(fused), torch.autograd.profiler.profile(enabled=followed):
            assert module(one).stride() == module(x).stride(), fused
            (found,) = torch.autograd.grad((norm(module(one)) * wanted).sum(), one)
            (expected,) = torch.autograd.grad((norm(module(one).contiguous()) * wanted).sum(), one)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet:UserWarning")  # torch's own
def test_vmap_over_batches(name):
    module, x = make(name), torch.randn(3, 2, CHANNELS, 6, 5)
    torch.testing.assert_close(torch.func.vmap(module)(x), torch.stack([module(batch) for batch in x]))


def test_dtypes(name):
    module = make(name)
    x = torch.randn(2, CHANNELS, 6, 5)
    expected = module(x)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        out = copy.deepcopy(module).to(dtype)(x.to(dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


FUSED = (*NAMES, "timm:eca", "timm:ceca")


@pytest.fixture
def small_maps(monkeypatch):
    """SE takes its passes for small maps, too."""
    monkeypatch.setattr(se, "_ELEMENTS", 0)
    monkeypatch.setattr(se, "_POSITIONS", 0)


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", FUSED)
def test_autocast_is_that_of_the_definition(spec, dtype):
    module, x = make(spec), torch.randn(2, CHANNELS, 6, 5).to(dtype)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
            out = module(x)
            with use_fused(False):
                expected = module(x)
        assert out.dtype == expected.dtype, gradients
        torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)


def outcome(module, x, fused):
    """The output, or the class of the error."""
    with use_fused(fused):
        try:
            return module(x)
        except (RuntimeError, ValueError) as error:
            return type(error)


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize("channels", [1, CHANNELS // 2, CHANNELS - 1, CHANNELS + 1, 4 * CHANNELS])
@pytest.mark.parametrize("spec", FUSED)
def test_another_number_of_channels_is_to_all_what_it_is_to_the_definition(spec, channels):
    module, x = make(spec), torch.randn(2, channels, 6, 5)
    for training, gradients in ((False, False), (False, True), (True, True), (True, False)):
        module.train(training)
        with torch.set_grad_enabled(gradients):
            found, expected = (outcome(module, x, fused) for fused in (True, False))
        if isinstance(expected, type):
            assert found is expected, (training, gradients)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_every_parameter_and_the_input_get_a_gradient(name):
    alive = {key: False for key, _ in make(name).named_parameters()}
    for seed in range(5):  # a ReLU may close a unit, which at 16 channels can be the only one
        module = make(name, seed=seed)
        x = torch.randn(4, CHANNELS, 6, 5, requires_grad=True)
        (module(x) * torch.randn(4, CHANNELS, 6, 5)).sum().backward()
        assert x.grad.abs().sum() > 0
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            alive[key] |= bool(parameter.grad.abs().sum() > 0)
    assert all(alive.values()), [key for key, moved in alive.items() if not moved]


def test_trains(name):
    module = make(name).train()
    x = torch.randn(4, CHANNELS, 6, 5, requires_grad=True)  # a mechanism may have no parameter
    module(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_input_is_not_changed(name):
    x = torch.randn(2, CHANNELS, 6, 5)
    before = x.clone()
    make(name).train()(x)
    assert torch.equal(x, before)


def test_deepcopy_and_state_dict(name):
    module, x = make(name), torch.randn(2, CHANNELS, 6, 5)
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    other = registry.build(name, CHANNELS).eval()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


def test_runs_without_data(name):
    module = make(name).to("meta")
    assert module(torch.empty(2, CHANNELS, 6, 5, device="meta")).shape == (2, CHANNELS, 6, 5)


def test_torch_export(name):
    module, x = make(name), torch.randn(2, CHANNELS, 6, 5)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    other = torch.randn(5, CHANNELS, 6, 5)
    torch.testing.assert_close(program.module()(other), module(other), rtol=1e-5, atol=1e-6)


def test_symbolic_trace(name):
    module = make(name)
    traced = torch.fx.symbolic_trace(module)
    for positions in ((6, 5), (3, 4)):
        x = torch.randn(2, CHANNELS, *positions)
        torch.testing.assert_close(traced(x), module(x), rtol=1e-5, atol=1e-6)


def test_compiles_in_one_graph(name):
    torch._dynamo.reset()
    module, x = make(name), torch.randn(2, CHANNELS, 6, 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is not supported in Python 3.14:DeprecationWarning")
def test_script_works_or_says_why_not(name):
    module = make(name)
    try:
        scripted = torch.jit.script(module)
    except FoveateError as error:
        assert "torch.jit.trace, torch.compile or torch.export" in str(error)
        return
    for positions in ((6, 5), (3, 4)):
        x = torch.randn(2, CHANNELS, *positions)
        torch.testing.assert_close(scripted(x), module(x), rtol=1e-5, atol=1e-6)


def test_paper_cost_is_a_pair_of_whole_numbers(name):
    module = make(name)
    formula = getattr(module, "paper_cost", None)
    if formula is not None:
        params, macs = formula(CHANNELS, 7, 11)
        assert params >= 0
        assert macs >= 0
        assert isinstance(params, int)
        assert isinstance(macs, int)
