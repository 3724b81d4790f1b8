"""Every registered head keeps the contract: options, shapes, dtypes, memory formats, gradients, copies, export."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveate import registry
from foveate.errors import FoveateError

NAMES = registry.names("heads")
VARIANTS = [
    *NAMES,
    "ltpa(score='parameterised', join='separate')",
    "ltpa(join='separate', project='pooled', combine='product', regularise=True)",
    "saol(distillation=1.0, self_supervision=1.0, width=8)",
]
PAGES = Path(__file__).parents[2] / "docs" / "heads"
# The sizes of the pages: the last three feature maps of a ResNet-50 at 224 px.
PAGE_SIZES = ((512, 1024, 2048), 2048, 1000)
PAGE_PIXELS = (28, 14, 7)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=VARIANTS)
def spec(request):
    return request.param


@pytest.fixture
def make(sizes, randomise):
    """Builds a head with parameters as after training, in eval mode."""

    def built(spec: str) -> nn.Module:
        return randomise(registry.build(spec, *sizes, kind="heads")).float().eval()

    return built


@pytest.fixture
def floats(new_inputs):
    return lambda **options: new_inputs(dtype=torch.float32, **options)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_there_are_heads():
    assert {"ltpa", "saol"} <= set(NAMES)


def test_constructor_is_a_schema(name):
    constructor = registry.find(name, "heads")
    parameters = list(inspect.signature(constructor).parameters.values())
    assert [p.name for p in parameters[:3]] == ["channels", "features", "classes"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[3:])
    assert all(isinstance(p.default, bool | int | float | str | None) for p in parameters[3:])
    assert isinstance(constructor.levels, int)
    assert constructor.map_axes == "b h w"


def test_page_names_every_option_and_the_cost(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    for option in registry.options(name, "heads"):
        assert f"| `{option}` |" in page, option
    head = registry.build(name, *PAGE_SIZES, kind="heads").eval().to("meta")
    channels, features, _ = PAGE_SIZES
    maps = [torch.empty(1, c, n, n, device="meta") for c, n in zip(channels, PAGE_PIXELS, strict=True)]
    with FlopCounterMode(display=False) as counter:
        head(maps, torch.empty(1, features, device="meta"))
    assert f"{sum(p.numel() for p in head.parameters()):,} parameters" in page
    assert f"{counter.get_total_flops() // 2:,} MACs" in page


@pytest.mark.parametrize(
    "pixels", [((28, 44), (14, 22), (7, 11)), ((7, 11),) * 3, ((9, 5), (4, 2), (1, 1)), ((1, 1),) * 3]
)
def test_any_size_gives_scores_and_a_map_for_what_is_read(make, floats, spec, pixels, sizes):
    head, (maps, pooled) = make(spec), floats(sizes=pixels)
    scores = head(maps, pooled)
    assert scores.shape == (3, sizes[2])
    assert scores.isfinite().all()
    shapes = [tuple(m.shape) for m in head.attend(maps, pooled)]
    assert shapes == [(3, *size) for size in pixels[-len(shapes) :]]


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_any_number_of_feature_maps(name, randomise, levels):
    head = randomise(registry.build(name, (6,) * levels, 6, 4, kind="heads")).eval()
    maps = [torch.randn(2, 6, 5, 4, dtype=torch.float64) for _ in range(levels)]
    assert head(maps, torch.randn(2, 6, dtype=torch.float64)).shape == (2, 4)
    with pytest.raises(FoveateError, match=f"built for {levels} feature maps and got {levels + 1}"):
        head([*maps, maps[0]], torch.randn(2, 6, dtype=torch.float64))


def test_unknown_option_is_refused(name, sizes):
    with pytest.raises(FoveateError, match="has no option 'nonsense'"):
        registry.build(f"{name}(nonsense=1)", *sizes, kind="heads")


@pytest.mark.parametrize("wrong", [((), 16, 5), ((8, 0, 16), 16, 5), ((8, 12, 16), 0, 5), ((8, 12, 16), 16, 0)])
def test_sizes_below_1_are_refused(name, wrong):
    with pytest.raises(FoveateError, match="no size is below 1"):
        registry.build(name, *wrong, kind="heads")


def test_images_of_a_batch_do_not_see_each_other(make, floats, spec):
    head, (maps, pooled) = make(spec), floats()
    alone = [head([m[i : i + 1] for m in maps], pooled[i : i + 1]) for i in range(3)]
    close(head(maps, pooled), torch.cat(alone))


def test_both_memory_formats_agree(make, floats, spec):
    head, (maps, pooled) = make(spec), floats()
    close(head([m.to(memory_format=torch.channels_last) for m in maps], pooled), head(maps, pooled))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(make, floats, spec, dtype):
    head, (maps, pooled) = make(spec), floats()
    expected = head(maps, pooled).softmax(1)
    out = copy.deepcopy(head).to(dtype)([m.to(dtype) for m in maps], pooled.to(dtype))
    assert out.dtype == dtype
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(out.float().softmax(1), expected, rtol=0, atol=tolerance)


def test_autocast(make, floats, spec):
    head, (maps, pooled) = make(spec), floats()
    with torch.autocast("cpu", torch.bfloat16):
        out = head(maps, pooled)
    torch.testing.assert_close(out.float().softmax(1), head(maps, pooled).softmax(1), rtol=0, atol=0.1)


def test_every_parameter_and_every_feature_map_gets_a_gradient(make, floats, name):
    head, (maps, pooled) = make(name), floats()
    maps = [m.requires_grad_() for m in maps]
    scores = head(maps, pooled)
    (scores * torch.randn_like(scores)).sum().backward()
    for key, tensor in [*((f"map {i}", m) for i, m in enumerate(maps)), *head.named_parameters()]:
        assert tensor.grad is not None, key
        assert tensor.grad.isfinite().all(), key
        assert tensor.grad.abs().sum() > 0, key


def test_trains(make, floats, spec):
    head, (maps, pooled) = make(spec).train(), floats()
    head(maps, pooled).logsumexp(1).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_inputs_are_not_changed(make, floats, spec):
    maps, pooled = floats()
    before = [m.clone() for m in [*maps, pooled]]
    make(spec).train()(maps, pooled)
    assert all(torch.equal(a, b) for a, b in zip([*maps, pooled], before, strict=True))


def test_deepcopy_and_state_dict(make, floats, spec, sizes):
    head, (maps, pooled) = make(spec), floats()
    assert torch.equal(copy.deepcopy(head)(maps, pooled), head(maps, pooled))
    head.train()(maps, pooled)  # what a training step remembers does not stand in the way
    other = registry.build(spec, *sizes, kind="heads").eval()
    other.load_state_dict(copy.deepcopy(head).state_dict())
    assert torch.equal(other(maps, pooled), head.eval()(maps, pooled))


def test_runs_without_data(make, floats, spec, sizes):
    maps, pooled = floats()
    out = make(spec).to("meta")([m.to("meta") for m in maps], pooled.to("meta"))
    assert out.shape == (3, sizes[2])


def test_torch_export(make, floats, spec):
    head, batch = make(spec), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(head, floats(), dynamic_shapes=([{0: batch}] * 3, {0: batch}))
    other = floats(batch=5, seed=2)
    close(program.module()(*other), head(*other))


def test_compiles_in_one_graph(make, floats, name):
    torch._dynamo.reset()
    head, inputs = make(name), floats()
    close(torch.compile(head, fullgraph=True, backend="aot_eager")(*inputs), head(*inputs))
