"""The fused ULSAM as PyTorch sees it: its operations, compile, export, hooks, copies; and ``fuse``."""

import copy
import io
import warnings

import onnx
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
from foveate.attention.ulsam import ULSAM
from foveate.kernels import dispatch as backends
from foveate.kernels.ulsam import cpu as ulsam_cpu
from foveate.kernels.ulsam import op as ulsam_op
from foveate.surgery import fuse

OPERATIONS = {"foveate.ulsam_infer.default", "foveate.ulsam_train.default"}

pytestmark = pytest.mark.skipif(bool(ulsam_cpu.why_not(torch.float32)), reason="no C compiler: the plain kernels serve")


@pytest.fixture
def module():
    torch.manual_seed(0)
    built = ULSAM(16, groups=4).eval()
    for key, tensor in built.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else torch.randn_like(tensor))
    return built


@pytest.fixture
def x():
    return torch.randn(2, 16, 6, 5)


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


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 3), ULSAM(16), nn.ReLU(), ULSAM(16, groups=2))


def test_fuse(x):
    torch.manual_seed(0)
    model, images = Small(), torch.randn(2, 3, 8, 8)
    model.train()(images)
    model.eval()
    keys, expected = list(model.state_dict()), model(images)
    maps = model[1].attend(model[0](images))
    assert fv.fuse(model) is model
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].attend(model[0](images)), maps, rtol=1e-5, atol=1e-6)
    for on in (True, False):
        with torch.no_grad(), fv.use_fused(on):
            torch.testing.assert_close(copy.deepcopy(model)(images), expected, rtol=1e-5, atol=1e-6)
            low = copy.deepcopy(model).bfloat16()(images.bfloat16())
            torch.testing.assert_close(low.float(), expected, rtol=0.1, atol=0.1)


def test_fuse_lets_gradients_of_the_input_through():
    torch.manual_seed(0)
    model, images = Small().eval(), torch.randn(2, 3, 8, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(model(images).square().sum(), images)
    (found,) = torch.autograd.grad(fv.fuse(model)(images).square().sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_fuse_keeps_nothing_and_compiles_at_once(monkeypatch):
    """What a later change of a weight does is in test_disturbed_modules.py."""
    asked = []
    monkeypatch.setattr(fuse, "ready", lambda *given: asked.append(given))
    model = Small().eval()
    before = [dict(vars(module)) for module in model.modules()]
    fv.fuse(model.bfloat16())
    assert asked == [("cpu", torch.bfloat16, "ulsam")] * 2
    assert [set(vars(module)) for module in model.modules()] == [set(each) for each in before]
    with fv.use_fused(False):
        fv.fuse(model)
    assert len(asked) == 2


def test_fuse_refuses_training_mode():
    with pytest.raises(fv.FoveateError, match=r"in training mode: call model.eval\(\) first"):
        fv.fuse(Small())
    model = Small().eval()
    model[1].bn_dws.train()
    with pytest.raises(fv.FoveateError, match="in training mode"):
        fv.fuse(model)


def test_a_reason_for_each_way_to_the_definition(module, x):
    """``choose`` says why none of the backends computes a call."""

    def reason(module, x):
        choice = module._choose(x)[0]
        assert not choice.backend
        return choice.reason

    assert module._choose(x)[0] == ("foveate.kernels.ulsam.cpu", "")
    with fv.use_fused(False):
        assert "use_fused(False)" in reason(module, x)
    assert "(B, C, h, w)" in reason(module, x[0])
    assert "(B, C, h, w)" in reason(module, x[:0])
    assert reason(module, x.double()) == "the backend for cpu takes float32, bfloat16, not float64"
    assert reason(module, x.to("meta")) == "there is no backend for meta, only for cpu, cuda"
    with torch.autograd.forward_ad.dual_level():
        assert "forward-mode" in reason(module, x)
    assert reason(module, nn.Parameter(x)) == "the input is not a plain tensor"
    for change, expected in (
        (lambda m: m.bn_dws.register_forward_hook(lambda *_: None), "'bn_dws' has a forward hook"),
        (lambda m: m.bn_dws.register_full_backward_hook(lambda *_: None), "'bn_dws' has a backward hook"),
        (lambda m: setattr(m, "bn_dws", nn.Identity()), "'bn_dws' is not the BatchNorm2d that was built"),
        (lambda m: delattr(m, "bn_dws"), "'bn_dws' is not the BatchNorm2d that was built"),
        (lambda m: setattr(m.conv_dws, "forward", m.conv_dws.forward), "the forward method of 'conv_dws' was replaced"),
        (lambda m: setattr(m, "attend", m.attend), "its method 'attend' was replaced"),
        (lambda m: setattr(m.conv_point, "bias", None), "'conv_point.bias' is missing or has another size"),
        (lambda m: setattr(m.bn_point, "running_mean", None), "'bn_point.running_mean' is missing or has another size"),
        (lambda m: setattr(m.conv_dws, "padding", (1, 1)), "a convolution has another stride or padding"),
        (lambda m: setattr(m.bn_dws.train(), "momentum", None), "keeps its statistics in another way"),
        (lambda m: m.bn_dws.to("meta"), "'bn_dws.weight' is not a plain tensor on the device of the input"),
    ):
        changed = copy.deepcopy(module)
        change(changed)
        assert expected in reason(changed, x)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert reason(module, x) == "a hook for all modules is registered"
    handle.remove()


def test_what_this_machine_has_is_listed():
    rows = {row[:3]: row[3] for row in backends.backends()}
    assert rows["ulsam", "cpu", "float32"].backend == "foveate.kernels.ulsam.cpu"
    for family, device in (("ulsam", "cuda"), ("gates", "cuda")):
        choice = rows[family, device, "float16"]
        assert bool(choice.backend) != bool(choice.reason)
        assert bool(choice.backend) == backends.ready("cuda", torch.float16, family).backend.startswith("foveate")
    with fv.use_fused(False):
        assert {row[3].reason for row in backends.backends()} == {
            "fused operations are switched off, by use_fused(False) or FOVEATE_FUSED=0"
        }


def test_one_backend_is_one_line():
    assert set(backends.BACKENDS) <= {"cpu", "cuda"}
