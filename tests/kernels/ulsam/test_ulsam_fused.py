"""The fused ULSAM on a CPU against the plain definition: outputs, gradients, statistics."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.attention.ulsam import ULSAM
from foveate.kernels.dispatch import choose, use_fused
from foveate.kernels.ulsam import cpu as ulsam_cpu
from foveate.kernels.ulsam import op as ulsam_op

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: the plain kernels serve"
)

LAYOUTS = ["contiguous", "channels_last", "every second column", "transposed"]
MODES = [(False, False), (True, True), (True, False), (False, True)]
# One for each way through the C source: rows and columns of one, many groups with the channels last, blocks of
# channels, strips of a plane, fewer tasks than threads, a strip that is empty, groups that do not fill a block or are
# larger than one, that end in half of what is taken at a time, or several of which lie in one vector.
SHAPES = [
    ((2, 32, 7, 9), 4),
    ((1, 16, 1, 1), 4),
    ((2, 8, 5, 1), 8),
    ((2, 6, 1, 6), 1),
    ((3, 300, 4, 5), 1),
    ((1, 80, 7, 7), 8),
    ((2, 64, 13, 9), 16),
    ((1, 3, 80, 90), 1),
    ((1, 130, 17, 3), 2),
    ((1, 4, 9, 1100), 2),
    ((2, 160, 3, 5), 4),
    ((2, 600, 3, 2), 3),
    ((1, 160, 9, 5), 4),
    ((3, 144, 4, 3), 1),
    ((2, 20, 5, 4), 5),
]


WIDE = (4, 10, 11)  # of SHAPES: hundreds of channels
of_wide = pytest.mark.slow(
    reason="hundreds of channels, a minute in all, as the narrow shapes in the rest",
    guards=("foveate/kernels/", "foveate/attention/ulsam.py", "constraints.txt"),
)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def as_after_training(module):
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else torch.randn_like(tensor))
    return module


def laid_out(x, layout):
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "every second column":
        return torch.stack([x, x + 1], dim=4).flatten(3)[..., ::2]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()


def results(module, modes, x, dy, fused):
    """Output, gradients of x and the parameters, statistics afterwards."""
    module.load_state_dict(module.saved)
    module.bn_dws.train(modes[0])
    module.bn_point.train(modes[1])
    module.zero_grad()
    x = x.detach().requires_grad_()
    with use_fused(fused):
        assert bool(choose(x).backend) == (fused and x.dtype != torch.float64)
        out = module(x)
        out.backward(dy)
    return [
        out.detach(),
        x.grad,
        *(p.grad for p in module.parameters()),
        *(b.clone().double() for b in module.buffers()),
    ]


class RoundedAtRandom(TorchDispatchMode):
    """Each number that an operation makes is taken times 1 + unit or 1 - unit: Monte Carlo arithmetic, Parker 1997."""

    def __init__(self, unit, seed):
        super().__init__()
        self.unit, self.generator = unit, torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if any(returned.alias_info for returned in func._schema.returns):  # a view, or in place
            return made
        return torch.utils._pytree.tree_map_only(torch.Tensor, self._rounded, made)

    def _rounded(self, tensor):
        if not tensor.is_floating_point():
            return tensor
        sign = torch.empty_like(tensor).bernoulli_(generator=self.generator).mul_(2).sub_(1)
        return tensor * (1 + self.unit * sign)


def rounded_results(module, modes, x, dy, unit, seed):
    with RoundedAtRandom(unit, seed):
        return results(module, modes, x.double(), dy.double(), False)


def compare(shape, groups, layout, modes, dtype=torch.float32):
    """The fused result is as near to the definition in float64 as the definition in float32 is, or within 1e-5.

    Gradients that vanish in exact arithmetic, such as of a bias before a batch norm or of scores that share one
    maximum, are noise in both, or by chance 0 in one: where the two bounds do not hold, each operation of the
    definition in float64 is rounded up or down at random, and the fused result is as near as the worst of that.
    """
    torch.manual_seed(0)
    module = as_after_training(ULSAM(shape[1], groups=groups)).to(dtype)
    module.saved = {k: v.clone() for k, v in module.state_dict().items()}
    x = laid_out(torch.randn(shape).to(dtype), layout)
    dy = torch.randn(shape).to(dtype)
    fused, plain = (results(module, modes, x, dy, on) for on in (True, False))
    exact = module.double()
    exact.saved = {k: v.double() if v.is_floating_point() else v for k, v in module.saved.items()}
    truth = results(exact, modes, x.double(), dy.double(), False)
    assert fused[0].dtype == dtype
    bound, factor = {torch.float32: (1e-5, 4), torch.bfloat16: (2e-2, 1.5)}[dtype]
    rounded = None
    for index, (f, p, t) in enumerate(zip(fused, plain, truth, strict=True)):
        scale = t.norm() + t.numel() ** 0.5  # the terms of a sum that nearly cancels are not small
        assert f.shape == t.shape
        if not (f - t).norm() <= max(bound * scale, factor * (p - t).norm()):
            if rounded is None:
                rounded = [rounded_results(exact, modes, x, dy, torch.finfo(dtype).eps, k) for k in range(8)]
            noise = max((r[index] - t).norm().item() for r in rounded)
            assert (f - t).norm() <= factor * noise, (index, relative(f, t), relative(p, t), noise)


@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize(
    "index",
    [
        pytest.param(index, marks=of_wide if index in WIDE else ())
        for index, (shape, _) in enumerate(SHAPES)
        if shape != (1, 16, 1, 1)  # no variance
    ],
)
def test_gradients(index, modes):
    """Each shape in each mode, in each layout, and each mode in each layout."""
    compare(*SHAPES[index], LAYOUTS[(index + MODES.index(modes)) % 2], modes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape,groups", SHAPES[:3])
def test_gradients_in_other_strides(shape, groups, layout):
    compare(shape, groups, layout, (False, False))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("shape,groups", SHAPES[:7])
def test_gradients_in_bfloat16(shape, groups, layout):
    compare(shape, groups, layout, (False, False), torch.bfloat16)


def inferred(shape, groups, layout, dtype):
    torch.manual_seed(1)
    module = as_after_training(ULSAM(shape[1], groups=groups)).eval().to(dtype)
    x = laid_out(torch.randn(shape).to(dtype), layout)
    with torch.no_grad():
        fused = module(x)
        with use_fused(False):
            plain = module(x)
            truth = module.double()(x.double())
    assert fused.dtype == dtype
    assert fused.is_contiguous(memory_format=torch.channels_last) or layout != "channels_last"
    assert fused.is_contiguous() or layout == "channels_last" or shape[1] == 1 or layout == "transposed"
    return fused, plain, truth


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape,groups", SHAPES)
def test_inference(shape, groups, layout, nan_memory):
    fused, plain, truth = inferred(shape, groups, layout, torch.float32)
    assert relative(fused, plain) <= 1e-5
    assert relative(fused, truth) <= 1e-6


slow = pytest.mark.slow(
    reason="drawn at random from what the chosen cases above cover in pairs",
    guards=("foveate/kernels/", "foveate/attention/ulsam.py", "constraints.txt"),
)
any_case = given(
    groups=st.sampled_from([1, 2, 3, 4, 8, 16]),
    per_group=st.one_of(st.integers(1, 40), st.integers(41, 300)),
    batch=st.integers(1, 3),
    positions=st.one_of(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.just((1, 1))),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


@slow
@settings(max_examples=25, deadline=None)
@any_case
@example(groups=2, per_group=42, batch=1, positions=(1, 2), layout="contiguous", dtype=torch.float32)  # of one maximum
@example(groups=1, per_group=16, batch=1, positions=(2, 2), layout="channels_last", dtype=torch.float32)
def test_gradients_at_any_shape(groups, per_group, batch, positions, layout, dtype):
    modes = (batch * positions[0] * positions[1] > 1,) * 2  # one value has no variance
    compare((batch, groups * per_group, *positions), groups, layout, modes, dtype)


@slow
@settings(max_examples=40, deadline=None)
@any_case
def test_inference_at_any_shape(groups, per_group, batch, positions, layout, dtype):
    fused, _, truth = inferred((batch, groups * per_group, *positions), groups, layout, dtype)
    # bfloat16: the input is read once, everything is computed in float32, the result is rounded once
    assert relative(fused, truth) <= {torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]


@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(threads, dtype, bound):
    torch.set_num_threads(threads)
    for layout in LAYOUTS[:2]:
        for shape in ((5, 24, 9, 8), (1, 160, 13, 4), (1, 640, 3, 3), (2, 32, 30, 2)):
            fused, _, truth = inferred(shape, 2, layout, dtype)
            assert relative(fused, truth) <= bound


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("place", [(0, 0), (0, 4), (3, 0), (2, 2), (3, 4)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_stays_where_the_definition_has_it(layout, place, value, dtype):
    torch.manual_seed(0)
    module = as_after_training(ULSAM(16, groups=4)).eval().to(dtype)
    x = laid_out(torch.randn(2, 16, 4, 5), layout).to(dtype)
    x[1, 6, place[0], place[1]] = value
    with torch.no_grad():
        fused = module(x)
        with use_fused(False):
            plain = module(x)
    assert torch.equal(fused.isnan(), plain.isnan())
    assert torch.equal(fused.isinf(), plain.isinf())
    if value != value:
        assert fused[1, 4:8].isnan().all()
        assert not fused[0].isnan().any()


@of_wide
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_nothing_reads_what_nothing_wrote(layout, nan_memory):
    for shape, groups in SHAPES[:8]:
        compare(shape, groups, layout, (False, False))


@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (0, 8, 1, 1)])
def test_empty(shape):
    with torch.no_grad():
        assert ULSAM(8).eval()(torch.empty(shape)).shape == shape


def test_statistics_that_a_difference_of_squares_would_lose():
    x = torch.randn(4, 10, 9, 9) * 0.01 + 30
    module = ULSAM(10, groups=2)
    parts = (module.conv_dws, module.bn_dws, module.conv_point, module.bn_point)
    parameters = [p for part in parts for p in (part.weight, part.bias)]
    for layout in LAYOUTS[:2]:
        given = laid_out(x, layout), parameters, [torch.empty(0)] * 4, 1e-5, 1e-5
        _, _, _, mean, var, _ = torch.ops.foveate.ulsam_train.default(*given)
        assert relative(mean, x.double().mean((0, 2, 3))) <= 1e-6
        assert relative(var, x.double().var((0, 2, 3), correction=0)) <= 1e-5


def test_equal_maxima_give_their_gradient_to_the_first_as_torch_does():
    torch.manual_seed(0)
    module = as_after_training(ULSAM(8, groups=2)).eval()
    for layout in LAYOUTS[:2]:
        x = laid_out(torch.randint(0, 3, (2, 8, 6, 7)).float(), layout)
        gradients = []
        for on in (True, False):
            given_x = x.detach().requires_grad_()
            with use_fused(on):
                (module(given_x) * torch.arange(7)).sum().backward()
            gradients.append(given_x.grad)
        assert relative(*gradients) <= 1e-5


@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("layout,no_modes", [("contiguous", True), ("channels_last", False)])
def test_gradcheck(modes, layout, no_modes, monkeypatch):
    """With a mode it goes through torch.library's operation, else past it."""
    torch.manual_seed(0)
    module = as_after_training(ULSAM(4, groups=2)).double()
    torch.set_num_threads(1)  # hundreds of calls that are over before a second thread wakes
    x = laid_out(torch.randn(2, 4, 2, 3, dtype=torch.float64), layout).requires_grad_()
    norms = (module.bn_dws, module.bn_point)
    parts = (module.conv_dws, norms[0], module.conv_point, norms[1])
    parameters = [p for part in parts for p in (part.weight, part.bias)]
    empty = torch.empty(0)
    running = [
        t
        for norm, mode in zip(norms, modes, strict=True)
        for t in ((empty, empty) if mode else (norm.running_mean, norm.running_var))
    ]

    def out(x, *parameters):
        return ulsam_op.train(x, list(parameters), running, 1e-5, 1e-5)[0]

    monkeypatch.setattr(ulsam_op, "no_active_modes", lambda: no_modes)
    assert torch.autograd.gradcheck(out, (x, *parameters))
    assert torch.autograd.gradgradcheck(out, (x, *parameters), fast_mode=True)  # of the definition


def test_second_derivatives_come_from_the_definition():
    module = as_after_training(ULSAM(8, groups=2)).eval()
    x = torch.randn(2, 8, 5, 4, requires_grad=True)
    found = []
    for on in (True, False):
        with use_fused(on):
            (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_only_what_needs_a_gradient_gets_one():
    module = ULSAM(8).train()
    module.requires_grad_(False)
    x = torch.randn(2, 8, 5, 4, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in module.parameters())
    module.requires_grad_(True)
    module(x.detach()).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_one_value_for_each_channel_is_refused_as_by_torch():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ULSAM(8).train()(torch.randn(1, 8, 1, 1))


def test_memory_that_another_thread_takes_first_is_made_anew(monkeypatch):
    class Taken(list):  # as if it were emptied between the look and the grasp
        def __bool__(self):
            return True

    monkeypatch.setattr(ulsam_cpu, "_free", Taken())
    fused, plain, _ = inferred((2, 8, 5, 4), 2, "channels_last", torch.float32)
    assert relative(fused, plain) <= 1e-5
    compare((2, 8, 5, 4), 2, "contiguous", (True, True), torch.float32)


def test_callers_in_several_threads_do_not_share_their_memory():
    module = as_after_training(ULSAM(24, groups=2)).eval()
    inputs = [torch.randn(1 + k % 3, 24, 9 + k, 8) for k in range(8)]

    def infer(x):
        with torch.no_grad():
            return [module(x) for _ in range(20)]

    with use_fused(False), torch.no_grad():
        expected = [module(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for outputs, truth in zip(pool.map(infer, inputs), expected, strict=True):
            assert all(relative(out, truth) <= 1e-5 for out in outputs)
