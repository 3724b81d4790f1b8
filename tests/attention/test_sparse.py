"""Strided sparse attention against the attention over its patterns, all pairs written out."""

import io
import warnings

import onnxruntime
import pytest
import torch

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.sparse import StridedSparseAttention
from foveate.errors import FoveateError


def sees(i, j, window, stride, causal):
    """(local, strided), from the words of the paper."""
    if causal and j > i:
        return False, False
    return abs(i - j) < window, (i - j) % stride == 0


def attention(m, x, step, heads, which, window, stride):
    """Each place's mean over the positions that it sees, place by place, for some of the heads."""
    b, _, h, w = x.shape
    n = h * w
    qkv = torch.einsum("oi,bin->bno", m.qkv[step].weight[:, :, 0, 0], x.flatten(2))
    q, k, v = qkv.reshape(b, n, 3, m.heads, -1).unbind(2)
    rows = []
    for i in range(n):
        seen = [j for j in range(n) if sees(i, j, window, stride, m.causal)[which]]
        scores = torch.einsum("bkd,bjkd->bkj", q[:, i, heads], k[:, seen][:, :, heads]) / q.shape[-1] ** 0.5
        rows.append(torch.einsum("bkj,bjkd->bkd", scores.softmax(2), v[:, seen][:, :, heads]))
    return torch.stack(rows, dim=1).flatten(2)


def project(m, y, x, step):
    out = torch.einsum("oi,bni->bon", m.out[step].weight[:, :, 0, 0], y) + m.out[step].bias[:, None]
    return out.view_as(x)


def equations(m, x):
    stride = m.stride or x.shape[3]
    window = m.window or stride
    if m.arrangement == "heads":
        half = m.heads // 2
        local = attention(m, x, 0, slice(half), 0, window, stride)
        strided = attention(m, x, 0, slice(half, None), 1, window, stride)
        return x + project(m, torch.cat([local, strided], 2), x, 0)
    x = x + project(m, attention(m, x, 0, slice(None), 0, window, stride), x, 0)
    return x + project(m, attention(m, x, 1, slice(None), 1, window, stride), x, 1)


@pytest.mark.parametrize("options", [{}, {"stride": 4}, {"stride": 5, "window": 6}, {"window": 3}, {"stride": 99}])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("arrangement", ["steps", "heads"])
def test_equals_the_equations(agree, randomise, arrangement, causal, options):
    module = randomise(StridedSparseAttention(8, heads=4, causal=causal, arrangement=arrangement, **options))
    agree(module, equations, torch.randn(2, 8, 4, 6))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("arrangement", ["steps", "heads"])
def test_map_is_over_the_positions_of_the_pattern(arrangement, causal):
    module = StridedSparseAttention(8, heads=2, causal=causal, arrangement=arrangement)
    maps = module.attend(torch.randn(1, 8, 4, 6))
    kinds = 2 if arrangement == "heads" else 4
    assert maps.shape == (1, kinds, 24, 4, 6)
    torch.testing.assert_close(maps.sum((3, 4)), torch.ones(1, kinds, 24))
    for i in range(24):
        for j in range(24):
            local, strided = sees(i, j, 6, 6, causal)
            values = maps[0, :, i].flatten(1)[:, j]
            assert (values[: kinds // 2] > 0).all() == local
            assert (values[kinds // 2 :] > 0).all() == strided


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("arrangement", ["steps", "heads"])
def test_the_maps_give_the_output(randomise, arrangement, causal):
    m = randomise(StridedSparseAttention(8, heads=2, causal=causal, arrangement=arrangement))
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    maps = m.attend(x).flatten(3)

    def step(x, number, maps):
        v = torch.einsum("oi,bin->bon", m.qkv[number].weight[16:, :, 0, 0], x.flatten(2)).view(2, 2, 4, 24)
        return x + project(m, torch.einsum("bkij,bkdj->bikd", maps, v).flatten(2), x, number)

    two = arrangement == "steps"
    expected = step(step(x, 0, maps[:, :2]), 1, maps[:, 2:]) if two else step(x, 0, maps)
    torch.testing.assert_close(m(x), expected)


def reach(module, x):
    """[i, j]: whether the output at place i depends on the input at place j."""
    x = x.requires_grad_()
    out = module(x).sum(1).flatten()
    return torch.stack([torch.autograd.grad(y, x, retain_graph=True)[0].abs().sum(1).flatten() > 0 for y in out])


def test_local_then_strided_reaches_every_earlier_place(randomise):
    n = 20
    causal = reach(randomise(StridedSparseAttention(8)), torch.randn(1, 8, 4, 5, dtype=torch.float64))
    assert torch.equal(causal, torch.ones(n, n, dtype=torch.bool).tril())
    both = reach(randomise(StridedSparseAttention(8, causal=False)), torch.randn(1, 8, 4, 5, dtype=torch.float64))
    assert both.all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("arrangement", ["steps", "heads"])
def test_memory_grows_as_n_sqrt_n(largest, arrangement, causal):
    module = StridedSparseAttention(4, heads=2, causal=causal, arrangement=arrangement)
    small, large = (largest(module, torch.randn(1, 4, side, side)) for side in (32, 64))
    assert large <= 8.2 * small  # n is 4 times as large: n^2 would be 16 times, n sqrt(n) is 8 times
    assert large < 4096**2 // 16


@pytest.mark.parametrize("causal,sides", [(True, 2), (False, 3)])
def test_macs_grow_as_n_sqrt_n(causal, sides):
    module = StridedSparseAttention(16, causal=causal).eval().to("meta")
    for side in (32, 64, 128):
        n = side**2
        pairs = n * sides * side + n * side
        assert count_operations(module, (16, side, side))[""].macs == 2 * 4 * 16**2 * n + 2 * 16 * pairs


@pytest.mark.parametrize(
    "options,params,macs",
    [
        ({}, 2_098_176, 419_471_360),
        ({"causal": False}, 2_098_176, 422_281_216),
        ({"arrangement": "heads"}, 1_049_088, 209_735_680),
        ({"arrangement": "heads", "causal": False}, 1_049_088, 211_140_608),
    ],
)
def test_cost_at_512(options, params, macs):
    module = StridedSparseAttention(512, **options)
    assert sum(p.numel() for p in module.parameters()) == params
    assert count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs == macs


@pytest.mark.parametrize("options", [{"causal": False}, {"arrangement": "heads"}, {"stride": 4, "causal": False}])
def test_every_arrangement_is_one_graph(options):
    torch._dynamo.reset()
    module, x = StridedSparseAttention(8, **options).eval(), torch.randn(2, 8, 6, 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-6)


def any_size(module, x):
    sides = {0: torch.export.Dim("b", min=1), 2: torch.export.Dim("h", min=1), 3: torch.export.Dim("w", min=1)}
    return torch.export.export(module, (x,), dynamic_shapes=(sides,))


def onnx_of(module, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        file = io.BytesIO()
        torch.onnx.export(module, (x,), dynamo=True, verbose=False, **options).save(file)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


of_graphs = pytest.mark.slow(
    reason="exported for any size, fifteen seconds; tests/attention/test_contract.py exports it for one",
    guards=("foveate/attention/sparse.py", "foveate/kernels/sparse.py", "constraints.txt"),
)


@of_graphs
@pytest.mark.parametrize("options", [{}, {"causal": False, "arrangement": "heads"}])
def test_an_exported_graph_holds_for_any_height_and_width(options):
    torch.manual_seed(0)
    module, x = StridedSparseAttention(8, **options).eval(), torch.randn(2, 8, 6, 5)
    program = any_size(module, x).module()
    session = None if options else onnx_of(module, x, dynamic_shapes=({0: "b", 2: "h", 3: "w"},))
    for sides in ((6, 5), (3, 8), (12, 7), (2, 2), (1, 3)):
        other = torch.randn(3, 8, *sides)
        expected = module(other)
        torch.testing.assert_close(program(other), expected, rtol=1e-5, atol=1e-6)
        if session is not None:
            (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


@of_graphs
@pytest.mark.parametrize("options", [{"stride": 4}, {"window": 3}])
def test_a_graph_that_would_hold_for_one_size_only_is_refused_as_one_for_all(options):
    torch.manual_seed(0)
    module, x = StridedSparseAttention(8, **options).eval(), torch.randn(2, 8, 6, 5)
    with pytest.raises(FoveateError, match="can be exported for one height and width only"):
        any_size(module, x)
    if "window" in options:
        return
    with pytest.raises(torch.onnx.OnnxExporterError):  # it tries two ways, and both are refused
        onnx_of(module, x, dynamic_shapes=({0: "b", 2: "h", 3: "w"},))
    session, other = onnx_of(module, x, dynamic_shapes=({0: "b"},)), torch.randn(3, 8, 6, 5)
    (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("arrangement", ["steps", "heads"])
def test_one_place(arrangement, causal):
    module = StridedSparseAttention(8, causal=causal, arrangement=arrangement)
    assert module(torch.randn(2, 8, 1, 1)).isfinite().all()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"arrangement": "step"}, "did you mean 'steps'"),
        ({"heads": 3}, "does not fit 16 channels: take heads from 1, 2, 4, 8, 16"),
        ({"heads": 0}, "does not fit 16 channels"),
        ({"heads": 1, "arrangement": "heads"}, "take heads from 2, 4, 8, 16"),
        ({"stride": 0}, "stride=0.: it is at least 1"),
        ({"window": -1}, "window=-1.: it is at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(FoveateError, match=message):
        StridedSparseAttention(16, **options)


def test_no_heads_fit_an_odd_number_of_channels():
    with pytest.raises(FoveateError, match="take heads from none"):
        StridedSparseAttention(15, arrangement="heads")


@pytest.mark.parametrize("side,pairs", [(8, 64 * 64), (16, 256 * 32)])
def test_cost_says_what_the_pattern_needs_and_what_inference_runs(side, pairs):
    """The local attention of 64 positions is a dense one, of 256 it is in blocks."""
    needed, run = (
        count_operations(StridedSparseAttention(16).eval().to("meta"), (16, side, side), fused=fused)[""].macs
        for fused in (False, True)
    )
    others = 2 * 4 * 16**2 * side**2 + 2 * 16 * side**3  # the projections, and the columns
    assert needed == others + 2 * 16 * side**2 * 2 * side
    assert run == others + 2 * 16 * pairs
