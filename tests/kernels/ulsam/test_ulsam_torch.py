"""The fused ULSAM as PyTorch sees it: its operations, compile, export, hooks, copies; and ``fuse``."""

import contextlib
import copy
import io
import warnings

import onnx
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
from foveate.kernels.ulsam import cpu as ulsam_cpu
from foveate.kernels.ulsam import op as ulsam_op

OPERATIONS = {"foveate.ulsam_infer.default", "foveate.ulsam_train.default"}

pytestmark = pytest.mark.skipif(bool(ulsam_cpu.why_not(torch.float32)), reason="no C compiler: the plain kernels serve")


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def fused_operations(module, x):
    with Seen() as seen:
        module(x)
    return seen.names & OPERATIONS


def arguments(module, x, modes=(True, True)):
    norms = (module.bn_dws, module.bn_point)
    parameters = [p for m in (module.conv_dws, norms[0], module.conv_point, norms[1]) for p in (m.weight, m.bias)]
    pairs = [
        [torch.empty(0)] * 2 if on else [n.running_mean, n.running_var] for n, on in zip(norms, modes, strict=True)
    ]
    return x, parameters, [t.clone() for pair in pairs for t in pair], 1e-5, 1e-5


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
@pytest.mark.parametrize("modes", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(module, x, layout, modes):
    x = x.contiguous(memory_format=layout).detach()
    folded = ulsam_op.fold(module._choose(x)[1], 4, 1e-5, 1e-5)
    torch.library.opcheck(torch.ops.foveate.ulsam_infer.default, (x, folded, 4))
    torch.library.opcheck(torch.ops.foveate.ulsam_infer.default, (x[:, :, :, ::2], folded, 4))
    given = arguments(module, x.requires_grad_(), modes)
    torch.library.opcheck(torch.ops.foveate.ulsam_train.default, given)
    out, *saved, _ = torch.ops.foveate.ulsam_train.default(*given)
    backward = (torch.randn_like(out), *given, *saved)
    detached = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, backward)
    torch.library.opcheck(torch.ops.foveate.ulsam_train_backward.default, detached)


def test_taken_by_itself(module, x):
    with torch.no_grad():
        assert fused_operations(module, x) == {"foveate.ulsam_infer.default"}
    assert fused_operations(module, x) == {"foveate.ulsam_train.default"}  # the parameters want gradients
    assert not fused_operations(module.double(), x.double())
    assert not fused_operations(module.half(), x.half())


def test_a_profiler_sees_the_operation(module, x):
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        module(x)
    assert "foveate::ulsam_infer" in {event.key for event in seen.key_averages()}


def test_use_fused(module, x):
    assert fv.use_fused(False)
    try:
        assert not fused_operations(module, x)
        assert not fv.use_fused(False)
    finally:
        assert not fv.use_fused(True)
    with fv.use_fused(False):
        assert not fused_operations(module, x)
    assert fused_operations(module, x)


def test_a_hook_on_a_child_is_called(module, x):
    seen = []
    handle = module.bn_dws.register_forward_hook(lambda *_: seen.append(1))
    module(x)
    assert seen
    assert not fused_operations(module, x)
    handle.remove()
    assert fused_operations(module, x)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: nn.SyncBatchNorm.convert_sync_batchnorm(m),
        lambda m: nn.utils.parametrizations.weight_norm(m.conv_dws) and m,
        lambda m: setattr(m, "bn_dws", nn.BatchNorm2d(16, track_running_stats=False)) or m,
        lambda m: setattr(m, "bn_dws", nn.BatchNorm2d(16, affine=False)) or m,
    ],
)
def test_another_child_is_respected(module, x, change):
    module = change(module)
    assert not fused_operations(module.eval(), x)
    with fv.use_fused(False):
        expected = module(x)
    assert torch.equal(module(x), expected)


def test_averaged_statistics_are_left_to_the_definition_in_training(module, x):
    module.bn_point = nn.BatchNorm2d(4, momentum=None)
    other = copy.deepcopy(module)
    assert not fused_operations(module.train(), x)
    with fv.use_fused(False):
        other.train()(x)
        expected = other.eval()(x)
    torch.testing.assert_close(module.eval()(x), expected, rtol=1e-5, atol=1e-6)
    assert fused_operations(module, x) == {"foveate.ulsam_train.default"}


@pytest.mark.parametrize("child,name", [("conv_dws", "bias"), ("bn_dws", "weight"), ("bn_point", "running_var")])
def test_a_part_that_is_missing_is_left_to_the_definition(module, x, child, name):
    setattr(getattr(module, child), name, None)
    if name == "running_var":
        module.bn_point.running_mean = None
    fv.fuse(module)
    for learning in (False, True):
        with torch.set_grad_enabled(learning):
            assert not fused_operations(module, x)
            out = module(x)
            with fv.use_fused(False):
                assert torch.equal(out, module(x))


@pytest.mark.parametrize("change", [{"momentum": None}, {"track_running_stats": False}])
def test_how_statistics_are_kept_does_not_matter_to_inference(module, x, change):
    vars(module.bn_dws).update(change)
    with torch.no_grad():
        assert fused_operations(module, x)
        out = module(x)
        with fv.use_fused(False):
            torch.testing.assert_close(out, module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0])
def test_running_statistics_as_batch_norm_keeps_them(module, x, momentum):
    module.bn_dws.momentum = module.bn_point.momentum = momentum
    other = copy.deepcopy(module)
    for _ in range(3):
        module.train()(x)
        with fv.use_fused(False), torch.no_grad():
            other.train()(x)
    for (name, a), (_, b) in zip(module.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    assert module.bn_dws.num_batches_tracked == 3


def test_training_without_gradients_moves_the_statistics_too(module, x):
    before = module.bn_dws.running_mean.clone()
    with torch.no_grad():
        module.train()(x)
    assert not torch.equal(before, module.bn_dws.running_mean)


def test_what_changed_in_place_counts_at_once(module, x):
    with torch.no_grad():
        before = module(x)
        module.conv_point.weight.data.mul_(3)  # no version counter sees this
        after = module(x)
        with fv.use_fused(False):
            expected = module(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_compile(module, x, training, backend):
    torch._dynamo.reset()
    other = copy.deepcopy(module)
    results = []
    for m in (module.train(training), torch.compile(other.train(training), fullgraph=True, backend=backend)):
        given = x.clone().requires_grad_()
        out = m(given)
        out.square().sum().backward()
        results.append([out.detach(), given.grad, *(p.grad for p in m.parameters()), *m.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_compiled_inference_takes_the_fused_operation(module, x):
    torch._dynamo.reset()
    seen = []

    def look(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with torch.no_grad():
        out = torch.compile(module, fullgraph=True, backend=look)(x)
        torch.testing.assert_close(out, module(x), rtol=1e-5, atol=1e-6)
    assert "foveate.ulsam_infer.default" in seen


@pytest.mark.parametrize("fused", [False, True])
def test_exported_graphs_hold_torchs_own_operations(module, x, fused):
    if fused:
        fv.fuse(module)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(module, (x,), dynamic_shapes=dynamic)
    assert not any("foveate" in str(node.target) for node in program.graph.nodes if node.op == "call_function")
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-5, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, the tracer's remarks
        traced = torch.jit.trace(module, x)
        file = io.BytesIO()
        torch.onnx.export(module, (x,), dynamo=True, verbose=False).save(file)
    torch.testing.assert_close(traced(x), module(x), rtol=1e-5, atol=1e-6)
    assert {node.domain for node in onnx.load_from_string(file.getvalue()).graph.node} <= {
        "",
        "pkg.onnxscript.torch_lib",
    }


def test_transforms_of_torch_func(module, x):
    each = torch.func.vmap(lambda image: module(image.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(each, module(x), rtol=1e-5, atol=1e-5)
    _, tangent = torch.func.jvp(module, (x,), (torch.ones_like(x),))
    with torch.autograd.forward_ad.dual_level():
        dual = module(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_type_of_x(module, x, dtype):
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x.to(dtype))
        assert fused_operations(module, x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out, module(x.to(dtype)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("by_the_operation", [False, True])
def test_second_derivatives_where_the_types_differ(module, x, training, by_the_operation):
    """As under autocast: x in bfloat16 from the layer before, parameters in float32."""
    module.train(training)
    double = copy.deepcopy(module).double()
    wanted = torch.linspace(-1, 1, x.numel()).view_as(x).bfloat16()
    results = []
    for m, kind in ((module, torch.bfloat16), (double, torch.float64)):
        given = x.bfloat16().to(kind).requires_grad_()
        with Seen() if by_the_operation else contextlib.nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
                out = m(given)
                first = torch.autograd.grad(out, [given, *m.parameters()], wanted.to(kind), create_graph=True)
            results.append(torch.autograd.grad(first[0].to(torch.float64).square().sum(), [given, *m.parameters()]))
        assert [g.dtype for g in results[-1]] == [kind, *(p.dtype for p in m.parameters())]
    for found, truth in zip(*results, strict=True):
        assert (found - truth).norm() <= 0.05 * truth.norm() + 1e-3 * truth.numel() ** 0.5


@pytest.mark.parametrize("training", [False, True])
def test_several_gradients_at_once(module, x, training):
    out = module.train(training)(x.requires_grad_())
    inputs, wanted = [x, *module.parameters()], torch.randn(3, *out.shape)
    one_by_one = [torch.autograd.grad(out, inputs, each, retain_graph=True) for each in wanted]
    expected = [torch.stack(each) for each in zip(*one_by_one, strict=True)]
    together = torch.autograd.grad(out, inputs, wanted, is_grads_batched=True, retain_graph=True)
    mapped = torch.func.vmap(lambda dy: torch.autograd.grad(out, inputs, dy, retain_graph=True))(wanted)
    for found in (together, mapped):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_other_channels_are_refused_when_compiled(module):
    torch._dynamo.reset()
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match="channels"):
            torch.compile(module, backend="eager")(torch.randn(2, 32, 6, 5))


def test_the_operations_refuse_what_does_not_fit(module, x):
    ops = torch.ops.foveate
    folded = ulsam_op.fold(module._choose(x)[1], 4, 1e-5, 1e-5)
    _, parameters, running, *eps = arguments(module, x)
    with torch.no_grad():
        _, *saved, _ = ops.ulsam_train.default(x, parameters, running, *eps)
        for other in (torch.randn(2, 32, 6, 5), torch.randn(2, 8, 6, 5), x[0]):
            for call, given in (
                (ops.ulsam_infer, (other, folded, 4)),
                (ops.ulsam_train, (other, parameters, running, *eps)),
                (ops.ulsam_train_backward, (other, other, parameters, running, *eps, *saved)),
                (ops.ulsam_train_backward, (other, x, parameters, running, *eps, *saved)),
            ):
                with pytest.raises(RuntimeError, match="do not fit an input of shape"):
                    call.default(*given)
        for groups in (0, 3, 8):
            with pytest.raises(RuntimeError, match="do not fit"):
                ops.ulsam_infer.default(x, folded, groups)


def test_flops_are_those_of_the_two_convolutions(module, x):
    counts = []
    for on in (True, False):
        with fv.use_fused(on), torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(x)
        counts.append(counter.get_total_flops())
    assert counts == [4 * x.numel()] * 2


def test_checkpointing_and_copies(module, x):
    given = x.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(module, given, use_reentrant=False).sum().backward()
    other = x.clone().requires_grad_()
    copy.deepcopy(module)(other).sum().backward()
    assert torch.equal(given.grad, other.grad)
