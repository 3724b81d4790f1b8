"""ULSAM against its equations, written out by hand, one subspace after the other."""

import warnings

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.ulsam import ULSAM
from foveate.errors import FoveateError
from foveate.kernels.dispatch import use_fused


class Subspace(nn.Module):
    """The equations for one subspace, with the module names of the authors' state dict."""

    def __init__(self, channels, momentum):
        super().__init__()
        self.conv_dws = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn_dws = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv_point = nn.Conv2d(channels, 1, 1)
        self.bn_point = nn.BatchNorm2d(1, momentum=momentum)

    def forward(self, f):
        dw = self.bn_dws(self.conv_dws(f)).relu()
        pooled = nn.functional.max_pool2d(dw, 3, 1, 1)
        scores = self.bn_point(self.conv_point(pooled)).relu()
        b, _, h, w = scores.shape
        a = scores.reshape(b, h * w).softmax(1).reshape(b, 1, h, w)
        return f + a * f


class Equations(nn.Module):
    def __init__(self, channels, groups, momentum=0.1):
        super().__init__()
        self.subspaces = nn.ModuleList(Subspace(channels // groups, momentum) for _ in range(groups))

    def forward(self, x):
        parts = x.chunk(len(self.subspaces), dim=1)
        return torch.cat([subspace(f) for subspace, f in zip(self.subspaces, parts, strict=True)], dim=1)


def randomise(module):
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else torch.randn_like(tensor))


def pair(channels, groups, momentum=0.1, dtype=torch.float32):
    truth, module = Equations(channels, groups, momentum), ULSAM(channels, groups=groups, momentum=momentum)
    randomise(truth)
    module.load_state_dict(truth.state_dict())  # the authors' keys
    return truth.to(dtype), module.to(dtype)


def joined(truth, name):
    return torch.cat([dict(s.named_parameters())[name].grad for s in truth.subspaces])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_the_equations(training, dtype, bound):
    with use_fused(False):  # the definition; the fused kernels are held against it in tests/kernels
        equals_the_equations(training, dtype, bound)


def equals_the_equations(training, dtype, bound):
    torch.manual_seed(0)
    truth, module = pair(512, 4, dtype=dtype)
    truth.train(training)
    module.train(training)
    x = torch.randn(2, 512, 14, 14, dtype=dtype)
    weights = torch.randn_like(x)
    results = []
    for m in (truth, module):
        given = x.clone().requires_grad_()
        out = m(given)
        (out * weights).sum().backward()
        results.append((out.detach(), given.grad))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= bound * b.abs().max()
    for name, parameter in module.named_parameters():
        theirs = joined(truth, name)
        assert (parameter.grad - theirs).abs().max() <= bound * theirs.abs().max().clamp(min=1), name
    if training:  # the running statistics move alike
        for name, buffer in module.named_buffers():
            theirs = [dict(s.named_buffers())[name] for s in truth.subspaces]
            expected = theirs[0] if theirs[0].ndim == 0 else torch.cat(theirs)
            assert (buffer - expected).abs().max() <= 1e-5, name


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4, 8, 16]),
    per_group=st.integers(1, 4),
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_equals_the_equations_at_any_shape(groups, per_group, batch, height, width):
    torch.manual_seed(groups * per_group)
    truth, module = pair(groups * per_group, groups, dtype=torch.float64)
    x = torch.randn(batch, groups * per_group, height, width, dtype=torch.float64)
    assert (truth.eval()(x) - module.eval()(x)).abs().max() <= 1e-12


def test_each_map_is_a_distribution_over_positions():
    maps = ULSAM(32, groups=4).eval().attend(torch.randn(2, 32, 7, 11))
    assert maps.shape == (2, 4, 7, 11)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 4))


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16])
def test_cost(groups):
    module = ULSAM(512, groups=groups)
    assert sum(p.numel() for p in module.parameters()) == 5 * 512 + 3 * groups
    on_meta = nn.Sequential(module).eval().to("meta")
    assert count_operations(on_meta, (512, 14, 14))[""].macs == 200_704
    assert module.paper_cost(512, 14, 14) == (1_024, 200_704)


def test_parameters_at_512():
    assert sum(p.numel() for p in ULSAM(512, groups=4).parameters()) == 2_572


@pytest.mark.parametrize("side,change", [(7, 0.0205), (14, 0.0051), (28, 0.0013), (56, 0.0003)])
def test_at_the_start_it_changes_almost_nothing(side, change):
    torch.manual_seed(0)
    module = ULSAM(64, groups=4).eval()
    x = torch.randn(4, 64, side, side)
    measured = ((module(x) - x).norm() / x.norm()).item()
    assert measured == pytest.approx(change, rel=0.15)


def nodes(groups, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            ULSAM(32, groups=groups).eval(), (torch.randn(1, 32, 7, 7),), path, dynamo=True, verbose=False
        )
    return len(onnx.load(path).graph.node)


def test_onnx_graph_does_not_grow_with_the_groups(tmp_path):
    assert nodes(1, tmp_path / "1.onnx") == nodes(16, tmp_path / "16.onnx")


@pytest.mark.parametrize("groups", [3, 0, -1, 32])
def test_groups_must_divide_the_channels(groups):
    with pytest.raises(FoveateError, match=r"does not fit 16 channels: take groups from 1, 2, 4, 8, 16"):
        ULSAM(16, groups=groups)


def test_incomplete_authors_weights_are_refused():
    state = Equations(16, 4).state_dict()
    state.pop("subspaces.2.conv_dws.weight")
    with pytest.raises(RuntimeError, match="conv_dws.weight"):
        ULSAM(16, groups=4).load_state_dict(state)


def test_loading_leaves_the_callers_state_dict():
    state = Equations(16, 4).state_dict()
    keys = list(state)
    ULSAM(16, groups=4).load_state_dict(state)
    assert list(state) == keys
