"""The Triton kernels on CPU tensors against the definition. test_ulsam_triton.py runs this, with TRITON_INTERPRET=1.

The interpreter takes some 0.1 s for each program, so the shapes are small. It cuts bfloat16 off where a GPU rounds.
"""

import os

import pytest
import torch
from torch.nn import functional as F

from foveate.attention.ulsam import ULSAM
from foveate.kernels import dispatch as backends
from foveate.kernels.dispatch import use_fused
from foveate.kernels.ulsam import op as ulsam_op
from foveate.kernels.ulsam import triton_launch as ulsam_triton
from foveate.kernels.ulsam.reference import reweight, spatial_softmax

assert os.environ["TRITON_INTERPRET"] == "1"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, at NaN and infinity

FORMATS = [torch.contiguous_format, torch.channels_last]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
SHAPES = [((3, 4, 7, 7), 2), ((1, 3, 5, 9), 3), ((1, 5, 5, 9), 1), ((1, 8, 1, 1), 2), ((3, 2, 1, 4), 1)]
EVERY = [(*SHAPES[0], dtype) for dtype in BOUNDS] + [(*case, torch.float32) for case in SHAPES[1:]]
each_case = pytest.mark.parametrize("shape,groups,dtype", EVERY)
each_format = pytest.mark.parametrize("memory_format", FORMATS)


@pytest.fixture(autouse=True)
def seed(nan_memory):
    torch.manual_seed(0)


@pytest.fixture
def small_tiles(monkeypatch):
    """Loops over channels and over positions."""
    monkeypatch.setattr(ulsam_triton, "_tile", lambda *_: {"CHANNELS": 2, "POSITIONS": 16})
    monkeypatch.setattr(ulsam_triton, "processors_and_cache", lambda _: (1, 2**20))


def image(shape, memory_format, dtype=torch.float32):
    return torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)


def folded_for(shape, groups):
    return torch.randn(3 * shape[1] + groups)


def near(found, truth, bound=1e-5):
    assert found.shape == truth.shape
    assert (found.double() - truth).norm() <= bound * truth.norm().clamp(min=1e-30), (found, truth)


def scores_folded(x, folded, groups):
    channels = x.shape[1]
    scale, shift, point, bias = folded.to(x.dtype).split([channels, channels, channels, groups])
    hidden = (shift.view(-1, 1, 1) + x * scale.view(-1, 1, 1)).relu()
    return F.conv2d(F.max_pool2d(hidden, 3, 1, 1), point.view(groups, -1, 1, 1), bias, groups=groups)


def infer_truth(x, folded, groups):
    x, folded = x.double(), folded.double()
    return reweight(x, spatial_softmax(scores_folded(x, folded, groups).relu()))


def maps_for(shape, groups):
    return torch.rand(shape[0], groups, *shape[2:])


@each_format
@each_case
def test_inference(shape, groups, dtype, memory_format):
    x, folded = image(shape, memory_format, dtype), folded_for(shape, groups)
    out = ulsam_triton.infer(x, folded, groups)
    assert (out.dtype, out.stride()) == (dtype, torch.empty_like(x).stride())
    near(out, infer_truth(x, folded, groups), BOUNDS[dtype])


@each_format
@pytest.mark.parametrize("cache,launches", [(2**20, 1), (1, 10), (2 * 2 * 6 * 20 * 4, 6)])
def test_each_way_to_infer(cache, launches, memory_format, monkeypatch):
    """All groups at once; one image after the other; two images, two, and one."""
    seen = []
    launch = ulsam_triton._launch
    monkeypatch.setattr(ulsam_triton, "processors_and_cache", lambda _: (5, cache))
    monkeypatch.setattr(ulsam_triton, "_launch", lambda name, *a, **k: [seen.append(name), launch(name, *a, **k)])
    x, folded = image((5, 6, 4, 5), memory_format), folded_for((5, 6), 1)
    near(ulsam_triton.infer(x, folded, 1), infer_truth(x, folded, 1))
    assert len(seen) == launches


def test_a_large_group_alone_is_shared_by_all_programs(monkeypatch):
    seen = []
    monkeypatch.setattr(ulsam_triton, "_launch", lambda name, *_, **__: seen.append(name))
    for side in (8, 64):
        x = torch.zeros(1, 8, side, side)
        ulsam_triton.infer(x, folded_for(x.shape, 1), 1)
    assert seen == ["forward.infer", "forward.scores", "forward.reweight"]


@each_format
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("cache", [2**20, 1])
def test_not_a_number_goes_where_the_definition_has_it(cache, value, memory_format, monkeypatch):
    monkeypatch.setattr(ulsam_triton, "processors_and_cache", lambda _: (1, cache))
    for place in ((0, 0) if cache == 1 else (1, 2),):
        x, folded = image((2, 4, 3, 4), memory_format), folded_for((2, 4), 2)
        folded[2] = 0.0  # a scale
        x[1, 1:3, place[0], place[1]] = value
        out, truth = ulsam_triton.infer(x, folded, 2), infer_truth(x, folded, 2)
        assert torch.equal(out.isnan(), truth.isnan())
        assert torch.equal(out.isinf(), truth.isinf())
        assert not out[0].isnan().any()
        assert out[1].isnan().any()


@each_format
@each_case
def test_forward_passes_of_training(shape, groups, dtype, memory_format):
    x, folded, maps = image(shape, memory_format, dtype), folded_for(shape, groups), maps_for(shape, groups)
    near(ulsam_triton.scores(x, folded, groups), scores_folded(x.double(), folded.double(), groups))
    near(ulsam_triton.reweight(x, maps), reweight(x.double(), maps.double()), BOUNDS[dtype])
    mean, var = ulsam_triton.moments(x)
    near(mean, x.double().mean((0, 2, 3)))
    near(var, x.double().var((0, 2, 3), correction=0))


@each_format
def test_moments_that_a_difference_of_squares_would_lose(memory_format, small_tiles):
    x = (torch.randn(3, 4, 9, 9) * 0.01 + 30).contiguous(memory_format=memory_format)
    mean, var = ulsam_triton.moments(x)
    near(mean, x.double().mean((0, 2, 3)), 1e-6)
    near(var, x.double().var((0, 2, 3), correction=0))


def gradients_truth(x, dy, folded, maps, dscore, centre):
    groups, channels = maps.shape[1], x.shape[1]
    x, folded = x.double().requires_grad_(), folded.double().requires_grad_()
    score = scores_folded(x, folded, groups)
    dx, dfolded = torch.autograd.grad(
        [reweight(x, maps.double()), score], [x, folded], [dy.double(), dscore.double()], allow_unused=True
    )
    scale, shift, point = dfolded[: 3 * channels].view(3, channels)
    return dx, scale - centre * shift, shift, point


@each_format
@each_case
def test_backward_passes(shape, groups, dtype, memory_format):
    x, dy, folded = image(shape, memory_format, dtype), image(shape, memory_format, dtype), folded_for(shape, groups)
    maps, centre = maps_for(shape, groups), torch.randn(shape[1])
    dscore = torch.randn_like(maps)
    truth = gradients_truth(x, dy, folded, maps, dscore, centre)
    found = ulsam_triton.gradients(x, dy, folded, maps, dscore, centre)
    assert (found[0].dtype, found[0].stride()) == (dtype, torch.empty_like(x).stride())
    near(found[0], truth[0], BOUNDS[dtype])
    for f, t in zip(found[1:], truth[1:], strict=True):
        near(f, t)
    dmap = (x.double() * dy.double()).unflatten(1, (groups, -1)).sum(2)
    near(ulsam_triton.map_gradient(x, dy, groups), dmap)
    expected = dy.double() + centre.view(-1, 1, 1) + folded[: shape[1]].view(-1, 1, 1) * x.double()
    ulsam_triton.add_affine_(dy, x, centre, folded[: shape[1]])
    near(dy, expected, BOUNDS[dtype])


@each_format
def test_in_small_tiles_with_equal_maxima(memory_format, small_tiles):
    """The first of equal maxima gets the gradient, as in torch."""
    shape, groups = (1, 3, 6, 7), 1
    x = torch.randint(0, 3, shape).float().contiguous(memory_format=memory_format)
    dy, folded, maps, centre = (
        image(shape, memory_format),
        folded_for(shape, groups),
        maps_for(shape, groups),
        torch.randn(3),
    )
    folded[3:6] = 1.0
    dscore = torch.randn_like(maps)
    near(ulsam_triton.infer(x, folded, groups), infer_truth(x, folded, groups))
    near(ulsam_triton.scores(x, folded, groups), scores_folded(x.double(), folded.double(), groups))
    near(ulsam_triton.reweight(x, maps), reweight(x.double(), maps.double()))
    arguments = (x, dy, folded, maps, dscore, centre)
    for f, t in zip(ulsam_triton.gradients(*arguments), gradients_truth(*arguments), strict=True):
        near(f, t)
    near(ulsam_triton.map_gradient(x, dy, groups), (x.double() * dy.double()).sum(1, keepdim=True))
    expected = dy.double() + centre.view(-1, 1, 1) * (1 + x.double())
    ulsam_triton.add_affine_(dy, x, centre, centre)
    near(dy, expected)


@pytest.mark.parametrize("channels,groups", [(5, 5), (6, 1), (300, 4)])
def test_fold(channels, groups):
    vectors = [torch.rand(channels) + 0.1 for _ in range(7)] + [torch.rand(groups) + 0.1 for _ in range(5)]
    found = ulsam_triton.fold(vectors, groups, 1e-5, 1e-3)
    near(found, ulsam_op.fold([v.double() for v in vectors], groups, 1e-5, 1e-3))


@each_format
@pytest.mark.parametrize("modes", [(True, True), (False, False)])
def test_a_whole_step(modes, memory_format, monkeypatch):
    """Through the module and torch.library, with the backend in the place of the CPU's."""
    monkeypatch.setitem(backends.BACKENDS, "cpu", "foveate.kernels.ulsam.triton_launch")
    monkeypatch.setattr(ulsam_triton, "why_not", lambda _: "")
    backends.ready.cache_clear()
    module = ULSAM(4, groups=2)
    state = {k: v + torch.rand_like(v) if v.is_floating_point() else v.clone() for k, v in module.state_dict().items()}
    x, dy = image((2, 4, 3, 5), memory_format), image((2, 4, 3, 5), memory_format)
    results = []
    for on in (True, False):
        module.load_state_dict(state)
        module.bn_dws.train(modes[0])
        module.bn_point.train(modes[1])
        module.zero_grad()
        given = x.clone().requires_grad_()
        with use_fused(on):
            assert bool(backends.choose(given).backend) == on
            out = module(given)
            out.backward(dy)
            with torch.no_grad():
                inferred = module.eval()(x)
        small = [p.grad for p in module.parameters()]
        results.append([out.detach(), inferred, given.grad, *small, *(b.clone() for b in module.buffers())])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
