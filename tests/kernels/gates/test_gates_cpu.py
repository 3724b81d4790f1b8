"""The gates' passes in C against the plain definitions, in float64: every way through the source."""

import contextlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from foveate import registry
from foveate.attention import _timm_eca
from foveate.attention.bam import BAM
from foveate.attention.cbam import CBAM, ORDERS
from foveate.attention.se import SE
from foveate.kernels import dispatch
from foveate.kernels.dispatch import use_fused
from foveate.kernels.gates import cpu as gates_cpu
from foveate.kernels.gates import op as gates_op

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: the plain definitions serve"
)

# One position, rows and columns of one; tails of vectors, of four channels, four rows, four positions; planes longer
# than a block; more images than a task takes; channels of one; more than one strip of each kind.
SHAPES = [
    (2, 32, 7, 9),
    (1, 16, 1, 1),
    (3, 5, 1, 6),
    (1, 3, 5, 1),
    (1, 1, 4, 4),
    (11, 19, 3, 5),
    (1, 6, 40, 57),
    (2, 70, 13, 9),
    (1, 130, 19, 23),
]
LAYOUTS = ["contiguous", "channels_last", "every second column", "transposed"]
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
MODULES = {
    "se": lambda c: SE(c, reduction=4),
    "se without biases": lambda c: SE(c, reduction=2, bias=False),
    **{order: lambda c, order=order: CBAM(c, reduction=4, order=order) for order in ORDERS},
    **{pool: lambda c, pool=pool: CBAM(c, reduction=4, channel_pool=pool, kernel_size=3) for pool in ("avg", "max")},
    "a kernel of one": lambda c: CBAM(c, reduction=4, kernel_size=1),
    "bam": lambda c: BAM(c, reduction=4, dilation=2),
    "bam, the product": lambda c: BAM(c, reduction=4, combine="product", norm="end"),
    "eca": lambda c: registry.build("timm:eca", c),
    "ceca": lambda c: registry.build("timm:ceca", c),
    "ceca with a bias": lambda c: _timm_eca.CecaModule(c, act_layer=nn.ReLU),
    "eca of seven channels": lambda c: _timm_eca.EcaModule(None, 7),
}


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
def called(monkeypatch):
    """Names of the functions in C, as they are called."""
    seen = []
    for name in ("infer", "infer_along_channels", "_run"):
        call = getattr(gates_cpu, name)
        monkeypatch.setattr(gates_cpu, name, lambda *a, name=name, call=call: [seen.append(name), call(*a)][1])
    return seen


def as_after_training(module):
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else torch.randn_like(tensor))
    return module.eval()


def laid_out(x, layout):
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "every second column":
        return torch.stack([x, x + 1], dim=4).flatten(3)[..., ::2]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


def near(found, truth, bound=1e-6, plain=None):
    """Within the bound, or as near as the definition in the same type is, which has convolutions of torch's own."""
    assert found.shape == truth.shape
    allowed = bound * truth.norm().clamp(min=1e-30)
    if plain is not None:
        allowed = max(allowed, 2 * (plain.double() - truth).norm())
    assert (found.double() - truth).norm() <= allowed


def infer(module, x):
    with torch.no_grad():
        return module(x)


def inferred(name, shape, layout="contiguous", dtype=torch.float32):
    """The arguments of ``near``: the result, that of the definition in float64, and for BAM in the same type."""
    module, x = as_after_training(MODULES[name](shape[1])).to(dtype), laid_out(torch.randn(shape).to(dtype), layout)
    if name == "bam, the product":  # of scores of some units: of thousands, each one's rounding would be multiplied
        module.spatial[-1].weight.data.mul_(1e-3)
        module.spatial[-1].bias.data.mul_(1e-3)
    out = infer(module, x)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last) or layout != "channels_last"
    with use_fused(False):
        plain = infer(module, x) if name.startswith("bam") else None
        return out, infer(module.double(), x.double()), BOUNDS[dtype], plain


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("name", MODULES)
def test_modules_are_their_definition(name, layout, called, nan_memory):
    for shape in SHAPES:
        called.clear()
        near(*inferred(name, shape, layout))
        once = "infer_along_channels" if "eca" in name else "infer"
        assert called == (["_run", "_run"] if name.startswith("bam") else [once])


def test_se_takes_its_passes_for_large_maps_only(monkeypatch):
    monkeypatch.undo()
    module = SE(256).eval()
    taken = []
    monkeypatch.setattr(SE, "_infer", lambda self, x: taken.append(tuple(x.shape)) or x)
    with torch.inference_mode():
        for shape in ((16, 256, 28, 28), (1, 256, 28, 28), (64, 256, 14, 14), (1, 256, 1, 1)):
            module(torch.ones(shape))
    assert taken == [(16, 256, 28, 28)]


@pytest.mark.parametrize("name", ["se", "channel-spatial", "bam", "eca", "ceca with a bias"])
def test_other_strides_and_bfloat16(name, called):
    for layout in LAYOUTS:
        near(*inferred(name, SHAPES[0], layout))
    for layout in LAYOUTS[:2]:
        module, x = as_after_training(MODULES[name](32)), laid_out(torch.randn(2, 32, 7, 9).bfloat16(), layout)
        with use_fused(False):
            truth = infer(module.bfloat16().double(), x.double())  # one rounding of the weights, as they are
        bound = BOUNDS[torch.bfloat16] * (4 if name == "bam" else 1)  # whose convolutions are torch's own
        near(infer(module.bfloat16(), x), truth, bound)
    assert called


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(threads):
    torch.set_num_threads(threads)
    for layout in LAYOUTS[:2]:
        for shape in ((5, 24, 9, 8), (1, 160, 13, 4), (1, 3, 30, 2), (2, 5, 1, 3)):
            for name in ("se", *ORDERS[:3], "bam", "eca", "ceca"):
                near(*inferred(name, shape, layout))


@pytest.mark.slow(
    reason="each pass by itself, half a minute; the modules that are made of them are tested above",
    guards=("foveate/kernels/", "foveate/attention/", "constraints.txt"),
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_pass_is_its_definition(layout, dtype, monkeypatch, nan_memory):
    monkeypatch.setattr(gates_op, "no_active_modes", lambda: layout != "channels_last")  # else by torch's dispatcher
    bound = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float64: 1e-13}[dtype]
    for shape in SHAPES:
        x = laid_out(torch.randn(shape).to(dtype), layout)
        channels = torch.randn(shape[:2]).to(dtype)
        positions = torch.randn(shape[0], 1, shape[3], shape[2]).to(dtype).transpose(2, 3)
        wide, c, p = (t.double() for t in (x, channels, positions))
        for given, truth in ((None, None), (positions, p)):
            for most, mean in ((True, True), (True, False), (False, True)):
                found = gates_op.pool_positions(x, given, most=most, mean=mean)
                near(found, gates_op.pool_positions_plain(wide, truth, most, mean), bound)
        for given, truth in ((None, None), (channels, c)):
            near(gates_op.pool_channels(x, given), gates_op.pool_channels_plain(wide, truth), bound)
        for of_c, of_p in ((True, True), (True, False), (False, True)):
            found = gates_op.gate(x, channels if of_c else None, positions if of_p else None)
            near(found, gates_op.gate_plain(wide, c if of_c else None, p if of_p else None), bound)
        for product in (True, False):
            for scale in (1, 60):  # near 0, where exponentials are multiplied, and far from it
                found = gates_op.joint_gate(x, scale * channels, positions, product=product)
                near(found, gates_op.joint_gate_plain(wide, (scale * channels).double(), p, product), bound)


def same_kind(found, truth):
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["se", *ORDERS, "max", "bam", "bam, the product", "eca", "ceca"])
def test_what_is_not_a_number_stays_where_the_definition_has_it(name, value, layout):
    """Both signs of infinity in one channel make the mean no number, and not the maximum."""
    module = as_after_training(MODULES[name](8))
    for places in ([(2, 3)], [(0, 0), (4, 6)]):
        x = laid_out(torch.randn(2, 8, 5, 7), layout)
        for sign, (row, column) in zip((1, -1), places, strict=False):
            x[1, 2, row, column] = sign * value
        out = infer(module, x)
        with use_fused(False):
            same_kind(out, infer(module, x))
        assert out[0].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_scores_at_the_ends_of_their_range(layout):
    scores = torch.tensor([[float("-inf"), -200.0, -95.0, -80.0, 80.0, 95.0, 200.0, float("inf")]])
    x = laid_out(torch.randn(1, 8, 3, 3), layout)
    positions = torch.tensor([0.0, 1, -1, 50, -50, 100, -100, 300, -300]).view(1, 1, 3, 3)
    same_kind(gates_op.gate(x, scores), gates_op.gate_plain(x, scores, None))
    for given in (scores, scores.clamp(-30, 30)):
        found = gates_op.joint_gate(x, given, positions, product=False)
        same_kind(found, gates_op.joint_gate_plain(x, given, positions, False))


def test_torch_knows_the_operations():
    x, channels, positions = torch.randn(2, 3, 4, 5), torch.randn(2, 3), torch.randn(2, 1, 4, 5)
    for given in (x, laid_out(x, "channels_last"), x[..., ::2]):
        shaped = positions[..., : given.shape[3]]
        torch.library.opcheck(torch.ops.foveate.pool_positions.default, (given, shaped, True, True))
        torch.library.opcheck(torch.ops.foveate.pool_channels.default, (given, channels))
        torch.library.opcheck(torch.ops.foveate.gate.default, (given, channels, shaped))
        torch.library.opcheck(torch.ops.foveate.joint_gate.default, (given, channels, shaped, False))


def wider(module):
    module.fc1 = nn.Linear(8, 3)


CHANGES = {
    "another stride": lambda m: setattr(m.conv, "stride", (2, 2)),
    "another padding": lambda m: setattr(m.conv, "padding", (1, 1)),
    "another dilation": lambda m: setattr(m.conv, "dilation", (2, 2)),
    "circular": lambda m: setattr(m.conv, "padding_mode", "circular"),
    "a bias": lambda m: setattr(m.conv, "bias", nn.Parameter(torch.ones(1))),
    "a norm that trains": lambda m: m.bn.train(),
    "no statistics": lambda m: setattr(m.bn, "running_mean", None),
    "a norm without weight": lambda m: setattr(m.bn, "weight", None),
    "weights of another type": lambda m: m.fc1.double(),
    "a layer of other sizes": wider,
    "a weight of another size": lambda m: setattr(m.fc2, "weight", nn.Parameter(torch.ones(2, 2))),
    "a convolution of another shape": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(1, 2, 3, 7))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_function_in_c_does_not_know_is_left_to_torch(change, called):
    """The passes serve, with torch's own convolution between them; or the same error as by the definition."""
    module, x = as_after_training(CBAM(8, reduction=4)), torch.randn(2, 8, 9, 10)
    CHANGES[change](module)
    results = []
    for fused in (True, False):
        with use_fused(fused):
            try:
                results.append(infer(module, x))
            except (RuntimeError, ValueError) as error:
                results.append(str(error))
    assert "infer" not in called
    if isinstance(results[1], str):
        assert isinstance(results[0], str)
    else:
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_without_a_compiler_the_definition_serves(monkeypatch, called):
    monkeypatch.setattr(gates_cpu, "why_not", lambda _: "the C kernels cannot be used: no C compiler")
    dispatch.ready.cache_clear()
    try:
        for name in ("se", "channel-spatial", "bam", "eca"):
            out, truth, *_ = inferred(name, SHAPES[0])
            near(out, truth, 1e-5)
        assert not called
        assert dispatch.choose(torch.ones(1, 8, 3, 3), "gates").reason.endswith("no C compiler")
    finally:
        dispatch.ready.cache_clear()


def test_training_is_the_definition(called):
    for name in ("se", "channel-spatial", "bam", "eca", "ceca"):
        module, x = as_after_training(MODULES[name](8)), torch.randn(2, 8, 5, 6, requires_grad=True)
        module(x).sum().backward()
        module.train()(x).sum().backward()
    assert not called


def test_callers_in_several_threads_do_not_share_their_memory():
    module, inputs = as_after_training(CBAM(24)), [torch.randn(1 + k % 3, 24, 9 + k, 8) for k in range(8)]
    with use_fused(False):
        truths = [infer(module, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for outputs, truth in zip(
            pool.map(lambda x: [infer(module, x) for _ in range(10)], inputs), truths, strict=True
        ):
            for out in outputs:
                near(out, truth.double(), 1e-5)


def test_memory_is_kept_only_while_it_is_small(monkeypatch):
    monkeypatch.setattr(gates_cpu, "_free", [])
    monkeypatch.setattr(gates_cpu, "_KEPT", 0)
    near(*inferred("channel-spatial", SHAPES[0]))
    assert gates_cpu._free == []
    monkeypatch.setattr(gates_cpu, "_KEPT", 1 << 20)
    for shape in (SHAPES[1], SHAPES[0], SHAPES[1]):  # larger than what is kept, then smaller
        near(*inferred("channel-spatial", shape))
    assert len(gates_cpu._free) == 1


slow = pytest.mark.slow(
    reason="it compiles with the sanitizers of gcc, and runs every shape again",
    guards=(
        "foveate/kernels/",
        "foveate/attention/_gates.py",
        "foveate/attention/cbam.py",
        "foveate/attention/se.py",
        "constraints.txt",
    ),
)
SANITIZED = """
import sys, torch
from foveate.kernels import c_compiler
c_compiler.FLAGS = (*c_compiler.FLAGS, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
sys.path.insert(0, sys.argv[1])
import test_excitation, test_gates_cpu as tests
test_excitation._gates._TRAINED_ELEMENTS = 0
tests.gates_cpu._GRAIN = 0
for threads in (1, 3):
    torch.set_num_threads(threads)
    for layout in tests.LAYOUTS[:2]:
        for shape in tests.SHAPES:
            list(test_excitation.compared(shape, layout))
            for name in tests.MODULES:
                for dtype in tests.BOUNDS:
                    tests.inferred(name, shape, layout, dtype)
assert tests.gates_cpu.why_not(torch.float32) == "", tests.gates_cpu.why_not(torch.float32)
print("nothing found")
"""


@slow
def test_sanitizers_find_nothing(tmp_path):
    runtime = ""
    with contextlib.suppress(OSError):
        command = ["gcc", "-print-file-name=libasan.so"]
        runtime = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("gcc's address sanitizer is not installed")
    variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "LD_PRELOAD": runtime, "PYTHONMALLOC": "malloc"}
    variables["ASAN_OPTIONS"] = "detect_leaks=0:verify_asan_link_order=0"
    command = [sys.executable, "-c", SANITIZED, str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.splitlines()[-1] == "nothing found"
