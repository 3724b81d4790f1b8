"""Mean and maximum whose gradients take fewer passes: the bits of PyTorch's own, which serve wherever it matters."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import foveate as fv
from foveate import registry
from foveate.kernels import pooled
from foveate.kernels.pooled import largest_over, mean_over

OURS = {
    "mean": (mean_over, lambda x, dims, keep: x.mean(dim=dims, keepdim=keep)),
    "largest": (largest_over, lambda x, dims, keep: x.amax(dim=dims, keepdim=keep)),
}
DIMS = [([2, 3], False), ([1], True), ([2, 3], True), ([1], False)]


@pytest.fixture(params=OURS)
def pair(request):
    return OURS[request.param]


@pytest.fixture
def taken(monkeypatch):
    """Whether each call took the way with fewer passes."""
    seen, ask = [], pooled._has_gradients
    monkeypatch.setattr(pooled, "_has_gradients", lambda x: [seen.append(ask(x)), seen[-1]][1])
    return seen


def inputs():
    """Several elements of each maximum, no number, both infinities; both layouts, every second column, another type."""
    torch.manual_seed(0)
    x = torch.randn(3, 6, 5, 7).relu()
    x[0, 0], x[1, 2, 3, 4], x[2, 1, 0, 0], x[2, 1, 0, 1] = 0, float("nan"), float("inf"), float("-inf")
    yield from (x, x.contiguous(memory_format=torch.channels_last), x[..., ::2], x.double(), x.bfloat16(), x.half())


def test_outputs_and_gradients_have_the_same_bits(pair, taken):
    for given in inputs():
        for dims, keep in DIMS:
            results = []
            for call in pair:
                x = given.detach().clone(memory_format=torch.preserve_format).requires_grad_()
                out = call(x, dims, keep)
                weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
                results.append((out.detach(), *torch.autograd.grad((out * weights).sum(), x)))
            for found, expected in zip(*results, strict=True):
                assert found.dtype == expected.dtype
                assert torch.equal(found.isnan(), expected.isnan())
                assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert taken == [True] * 6 * len(DIMS)


def test_gradients_of_gradients(pair):
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    for dims, keep in DIMS:
        assert torch.autograd.gradcheck(lambda x, dims=dims, keep=keep: pair[0](x, dims, keep) ** 2, x)
        assert torch.autograd.gradgradcheck(lambda x, dims=dims, keep=keep: pair[0](x, dims, keep) ** 2, x)


def test_several_gradients_at_once(pair):
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    out, expected = (call(x, [2, 3], False) for call in pair)
    wanted = torch.eye(out.numel()).view(-1, *out.shape)
    found = torch.autograd.grad(out, x, wanted, is_grads_batched=True)
    for one, other in zip(found, torch.autograd.grad(expected, x, wanted, is_grads_batched=True), strict=True):
        assert torch.equal(one, other)


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mean_over(x, [2, 3]) + largest_over(x, [2, 3])


X = torch.randn(2, 3, 4, 5)


def without_gradients(_):
    Pooled()(X)
    with torch.no_grad():
        Pooled()(X.clone().requires_grad_())


def switched_off(x):
    with fv.use_fused(False):
        Pooled()(x)


def watched(x):
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        Pooled()(x)


def traced(x):
    with torch.no_grad():
        kinds = {node.kind() for node in torch.jit.trace(Pooled(), X).inlined_graph.nodes()}
    assert {"aten::mean", "aten::amax"} <= kinds


def transformed(_):
    torch.func.grad(lambda x: Pooled()(x).sum())(X)


def dual(x):
    with forward_ad.dual_level():
        Pooled()(forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.filterwarnings("ignore:`torch.jit:")
@pytest.mark.parametrize("how", [without_gradients, switched_off, watched, traced, transformed, dual])
def test_elsewhere_it_is_torchs_own(how, taken):
    how(X.clone().requires_grad_())
    assert taken
    assert not any(taken)


@pytest.mark.filterwarnings("ignore:`torch.jit:")
def test_scripts_graphs_and_compilers_see_mean_and_amax():
    kinds = {node.kind() for node in torch.jit.script(Pooled()).inlined_graph.nodes()}
    assert {"aten::mean", "aten::amax"} <= kinds
    names = {str(node.target) for node in torch.fx.symbolic_trace(Pooled()).graph.nodes}
    assert {"mean", "amax"} <= names
    graphs = []
    torch._dynamo.reset()
    compiled = torch.compile(
        Pooled(), backend=lambda graph, _: [graphs.append(graph), graph.forward][1], fullgraph=True
    )
    compiled(X.clone().requires_grad_())
    torch._dynamo.reset()
    assert {"mean", "amax"} <= {str(node.target) for node in graphs[0].graph.nodes}


@pytest.mark.parametrize("spec", ["se", "cbam", "cbam(order='parallel')", "bam"])
def test_a_training_step_has_the_bits_of_the_definition(spec, taken):
    torch.manual_seed(0)
    module, x = registry.build(spec, 16, kind="attention").train(), torch.randn(3, 16, 6, 5).relu()
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    results = []
    for fused in (True, False):
        module.load_state_dict(state)
        given = x.clone().requires_grad_()
        with fv.use_fused(fused):
            out = module(given)
            results.append((out, *torch.autograd.grad(out.sin().sum(), [given, *module.parameters()])))
    assert all(torch.equal(*both) for both in zip(*results, strict=True))
    assert True in taken
