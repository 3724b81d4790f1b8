"""The gates' Triton kernels on CPU tensors against the definitions. test_gates_triton.py runs this, interpreted.

The interpreter is slow, so the shapes are small. It cuts bfloat16 off where a GPU rounds.
"""

import os

import pytest
import torch

from foveate.attention.cbam import CBAM, ORDERS
from foveate.attention.se import SE
from foveate.kernels import dispatch as backends
from foveate.kernels.dispatch import use_fused
from foveate.kernels.gates import op as gates_op
from foveate.kernels.gates import triton_launch as gates_triton

assert os.environ["TRITON_INTERPRET"] == "1"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, at NaN and infinity

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
SHAPES = [(2, 5, 3, 7), (1, 1, 1, 1), (3, 8, 1, 1), (1, 1, 5, 3)]
EVERY = [(SHAPES[0], dtype) for dtype in BOUNDS] + [(shape, torch.float32) for shape in SHAPES[1:]]
each_case = pytest.mark.parametrize("shape,dtype", EVERY)
each_format = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])


@pytest.fixture(autouse=True)
def on_the_cpu(nan_memory, monkeypatch):
    """The backend in the place of the CPU's, which is none."""
    torch.manual_seed(0)
    monkeypatch.setitem(backends.GATES, "cpu", "foveate.kernels.gates.triton_launch")
    monkeypatch.setattr(gates_triton, "why_not", lambda _: "")
    backends.ready.cache_clear()
    yield
    backends.ready.cache_clear()


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels, as they are launched."""
    seen, launch = [], gates_triton._launch
    monkeypatch.setattr(gates_triton, "_launch", lambda name, *a, **k: [seen.append(name), launch(name, *a, **k)])
    return seen


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles of each axis, and several programs for one sum."""
    monkeypatch.setattr(gates_triton, "_TILE", 16)
    monkeypatch.setattr(gates_triton, "_LEAST", 1)


def image(shape, memory_format=torch.contiguous_format, dtype=torch.float32):
    return torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)


def scores_for(x):
    return torch.randn(x.shape[:2]).to(x.dtype), torch.randn(x.shape[0], 1, *x.shape[2:]).to(x.dtype)


def near(found, truth, bound=1e-6):
    assert found.shape == truth.shape
    assert (found.double() - truth).norm() <= bound * truth.norm(), (found, truth)


def same_kind(found, truth):
    """NaN and infinities stand at the same positions, and the rest is alike."""
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5, equal_nan=True)


def check(x, bound=1e-6):
    channels, positions = scores_for(x)
    wide, wide_channels, wide_positions = x.double(), channels.double(), positions.double()
    for given, truth, most, mean in (
        *((None, None, True, True), (None, None, True, False), (None, None, False, True)),
        (positions, wide_positions, True, True),
    ):
        found = gates_op.pool_positions(x, given, most=most, mean=mean)
        assert found.dtype == x.dtype
        near(found, gates_op.pool_positions_plain(wide, truth, most, mean), bound)
    for given, truth in ((None, None), (channels, wide_channels)):
        found = gates_op.pool_channels(x, given)
        assert found.dtype == x.dtype
        near(found, gates_op.pool_channels_plain(wide, truth), bound)
    for c, p in ((True, True), (True, False), (False, True)):
        found = gates_op.gate(x, channels if c else None, positions if p else None)
        assert found.dtype == x.dtype
        near(found, gates_op.gate_plain(wide, wide_channels if c else None, wide_positions if p else None), bound)
    return found


@each_format
@each_case
def test_passes(shape, dtype, memory_format, launched):
    x = image(shape, memory_format, dtype)
    assert check(x, BOUNDS[dtype]).stride() == torch.empty_like(x).stride()
    assert set(launched) == {"pool", "gate"}


@each_format
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 19, 3, 1)])
def test_passes_in_several_tiles_and_parts(shape, memory_format, small_tiles, launched):
    check(image(shape, memory_format))
    assert set(launched) == {"pool", "join", "gate"}


@each_format
def test_no_more_parts_than_there_are_processors_for(memory_format, small_tiles, launched, monkeypatch):
    monkeypatch.setattr(gates_triton, "processors_and_cache", lambda _: (1, 2**20))
    x = image((8, 2, 6, 8), memory_format)
    near(gates_op.pool_positions(x, most=True, mean=True), gates_op.pool_positions_plain(x.double(), None, True, True))
    assert launched == ["pool"]


@pytest.mark.parametrize("layout", ["every second column", "transposed", "expanded", "part of the channels"])
def test_other_strides(layout):
    x = image((2, 4, 5, 6))
    x = {
        "every second column": x[..., ::2],
        "transposed": x.transpose(2, 3),
        "expanded": x[:, :1].expand(-1, 3, -1, -1),
        "part of the channels": x.contiguous(memory_format=torch.channels_last)[:, 1:3],
    }[layout]
    check(x)


def test_scores_of_any_strides_and_another_type():
    x, channels, positions = image((2, 3, 4, 5)), torch.randn(3, 2).t().half(), torch.randn(2, 1, 5, 4).transpose(2, 3)
    near(gates_op.gate(x, channels, positions), gates_op.gate_plain(x.double(), channels.double(), positions.double()))
    near(gates_op.pool_channels(x, channels), gates_op.pool_channels_plain(x.double(), channels.double()))


@each_format
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_goes_where_the_definition_has_it(value, memory_format, monkeypatch):
    last = memory_format is torch.channels_last
    tile = (16, 2048)[(["nan", "inf", "-inf"].index(str(value)) + last) % 2]  # each value and format with each tile
    monkeypatch.setattr(gates_triton, "_TILE", tile)
    monkeypatch.setattr(gates_triton, "_LEAST", 2)
    x = image((2, 3, 5, 4), memory_format)
    x[1, 1, 0, 3], x[1, 1, 4, 0], x[0, 2] = value, -value, value
    channels, positions = scores_for(x)
    channels[0, 0], positions[0, 0, 2, 2] = float("-inf"), value  # a weight of 0
    for given in (None, positions):
        same_kind(
            gates_op.pool_positions(x, given, most=True, mean=True), gates_op.pool_positions_plain(x, given, True, True)
        )
    for given in (None, channels):
        same_kind(gates_op.pool_channels(x, given), gates_op.pool_channels_plain(x, given))
    same_kind(gates_op.gate(x, channels, positions), gates_op.gate_plain(x, channels, positions))


def test_torch_knows_the_operations():
    x = image((2, 3, 4, 5), torch.channels_last)
    channels, positions = scores_for(x)
    operations = torch.ops.foveate
    for x_ in (x, x[..., ::2]):
        torch.library.opcheck(operations.pool_positions.default, (x_, None, True, True))
        torch.library.opcheck(operations.pool_channels.default, (x_, channels))
        torch.library.opcheck(operations.gate.default, (x_, channels, None))
    torch.library.opcheck(operations.pool_positions.default, (x, positions, False, True))
    torch.library.opcheck(operations.gate.default, (x, channels, positions))


MODULES = [
    lambda: SE(8, reduction=4),
    lambda: SE(8, reduction=2, bias=False),
    *(lambda order=order: CBAM(8, reduction=4, order=order) for order in ORDERS),
    *(lambda pool=pool: CBAM(8, reduction=4, channel_pool=pool, kernel_size=3) for pool in ("avg", "max")),
]
EXPECTED = [  # the passes of each
    *[["pool", "gate"]] * 2,
    *[["pool", "pool", "gate"]] * 3,
    *[["pool", "gate"]] * 2,
    *[["pool", "pool", "gate"]] * 2,
]


@each_format
@pytest.mark.parametrize("build,expected", list(zip(MODULES, EXPECTED, strict=True)))
def test_modules(build, expected, memory_format, launched):
    module = build().eval()
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else torch.randn_like(tensor))
    x = image((2, 8, 5, 3), memory_format)
    with torch.no_grad():
        out = module(x)
        assert launched == expected
        with use_fused(False):
            plain = module(x)
            truth = module.double()(x.double())
    assert launched == expected
    near(out, truth)
    near(out, plain.double())
    assert out.stride() == plain.stride()


@pytest.mark.parametrize("build", MODULES[:1] + MODULES[2:4])
def test_modules_give_what_is_not_a_number_where_the_definition_does(build, launched):
    module = build().eval()
    for value in (float("nan"), float("inf")):
        x = image((2, 8, 3, 3))
        x[1, 2, 0, 1] = value
        with torch.no_grad():
            out = module(x)
            with use_fused(False):
                same_kind(out, module(x))
        assert not out[0].isnan().any()
    assert launched
