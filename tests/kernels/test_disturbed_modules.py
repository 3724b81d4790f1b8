"""Whatever is done to a module that has a fused path, it computes what its definition computes, in float64.

Each disturbance is done alike to a module and to its double in float64, which takes no fused operation; outputs,
gradients of the input and statistics are compared in evaluation and in training, before and after ``foveate.fuse``.
"""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import foveate as fv
from foveate import registry
from foveate.kernels import dispatch
from foveate.kernels.gates import op as gates_op

CHANNELS = 8
MODULES = [
    *((name, "attention") for name in registry.names("attention")),
    *((name, "pooling") for name in registry.names("pooling")),
    ("cbam(order='spatial-channel')", "attention"),
    ("attention_pool(classes=3, heads=2)", "pooling"),
]
FUSED = ("ulsam", "se", "cbam", "attention_pool")


@pytest.fixture(autouse=True)
def gates_on_the_cpu(monkeypatch):
    """The passes of the gates, which exist on CUDA only, as their definitions on the CPU."""
    definitions = {name: getattr(gates_op, f"{name}_plain") for name in ("pool_positions", "pool_channels", "gate")}
    backend = SimpleNamespace(TYPES=(torch.float32,), why_not=lambda _: "", **definitions)
    monkeypatch.setitem(sys.modules, "backend_of_the_cpu", backend)
    monkeypatch.setitem(dispatch.GATES, "cpu", "backend_of_the_cpu")
    dispatch.ready.cache_clear()
    yield
    dispatch.ready.cache_clear()


def make(spec, kind):
    torch.manual_seed(0)
    module = registry.build(spec, CHANNELS, kind=kind)
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else 0.5 * torch.randn_like(tensor))
    return module.eval()


def children(module, *names):
    """Every part with a parameter of one of these names."""
    return [part for part in module.modules() if any(part._parameters.get(name) is not None for name in names)]


def convolutions(module):
    return [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Shifted(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


DISTURBANCES = []


def disturbance(change):
    DISTURBANCES.append(change)
    return change


# ---- what is done to the parts: before or after fuse ----


@disturbance
def pruned(module, remove=False):
    for part in children(module, "weight", "bias"):
        for name in ("weight", "bias"):
            if part._parameters.get(name) is not None and part._parameters[name].numel() > 1:
                prune.l1_unstructured(part, name, 0.4)
                if remove:
                    prune.remove(part, name)


@disturbance
def pruned_and_removed(module):
    pruned(module, remove=True)


@disturbance
def weight_pruned_and_removed(module):
    for part in children(module, "weight"):
        prune.l1_unstructured(part, "weight", 0.4)
        prune.remove(part, "weight")


@disturbance
def parametrized(module):
    for part in children(module, "weight"):
        parametrize.register_parametrization(part, "weight", Twice())


@disturbance
def parametrized_and_removed(module, leave=True):
    for part in children(module, "weight"):
        parametrize.register_parametrization(part, "weight", Twice())
        parametrize.remove_parametrizations(part, "weight", leave_parametrized=leave)


@disturbance
def parametrized_and_removed_as_it_was(module):
    parametrized_and_removed(module, leave=False)


@disturbance
def spectral_normed(module):
    """With the singular vectors themselves: drawn and iterated they would differ between the types."""
    for part in convolutions(module):
        weight = part.weight.detach().flatten(1).double()
        parametrizations.spectral_norm(part)
        state = part.parametrizations.weight[0]
        if hasattr(state, "_u"):
            u, _, v = torch.linalg.svd(weight, full_matrices=False)
            state._u.copy_(u[:, 0])
            state._v.copy_(v[0])


@disturbance
def weight_normed_and_removed(module):
    for part in convolutions(module):
        parametrizations.weight_norm(part)
        parametrize.remove_parametrizations(part, "weight")


@disturbance
def hooked(module):
    for part in list(children(module, "weight")):
        part.register_forward_hook(lambda _module, _args, out: 2 * out)


@disturbance
def hooked_before(module):
    for part in list(children(module, "weight")):
        part.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))


def forward_replaced(module):
    for part in list(children(module, "weight")):
        part.forward = lambda x, forward=part.forward: 2 * forward(x)


@disturbance
def replaced_by_the_same_class(module):
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                other = copy.deepcopy(part)
                for tensor in other.parameters():
                    tensor.data.mul_(-0.5)
                setattr(parent, name, other)


@disturbance
def taken_out_and_put_back_behind(module):
    for parent in list(module.modules()):
        for name, part in list(parent.named_children())[:1]:
            if not isinstance(parent, nn.Sequential | nn.ModuleList):
                delattr(parent, name)
                parent.add_module(name, part)


@disturbance
def wrapped(module):
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm):
                setattr(parent, name, nn.Sequential(part, Twice()))


@disturbance
def norms_of_another_class(module):
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is nn.BatchNorm2d:
                other = Shifted(part.num_features).to(part.weight.dtype)
                other.load_state_dict(part.state_dict())
                setattr(parent, name, other.train(part.training))


@disturbance
def parameters_registered_anew(module):
    for part in children(module, "weight"):
        weight = part.weight
        del part.weight
        part.register_parameter("weight", nn.Parameter(weight.detach() * 2))


@disturbance
def weights_that_are_plain_attributes(module):
    for part in children(module, "weight"):
        weight = part.weight
        del part.weight
        part.weight = weight.detach() * 2


@disturbance
def without_biases(module):
    for part in children(module, "bias"):
        part.bias = None


@disturbance
def another_epsilon(module):
    for part in module.modules():
        if hasattr(part, "eps"):
            part.eps = 0.5


@disturbance
def buffers_registered_anew(module):
    for part in module.modules():
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.is_floating_point():
                delattr(part, name)
                part.register_buffer(name, buffer * 2)


@disturbance
def statistics_not_tracked(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False


@disturbance
def averaged_statistics(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None


@disturbance
def batches_not_counted(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.num_batches_tracked = None


@disturbance
def frozen(module):
    module.requires_grad_(False)


@disturbance
def part_of_the_norms_in_training(module):
    for part in [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)][:1]:
        part.train()


@disturbance
def attend_replaced(module):
    attend = module.attend
    module.attend = lambda *given: 0.5 * attend(*given)


# ---- weights that change, most of them without a trace on the parameter ----


@disturbance
def in_place(module):
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.mul_(1.5)


@disturbance
def through_data(module):
    for tensor in module.parameters():
        tensor.data.mul_(1.5)


@disturbance
def data_exchanged(module):
    for tensor in module.parameters():
        tensor.data = tensor.data * 1.5


@disturbance
def statistics_through_data(module):
    for tensor in module.buffers():
        if tensor.is_floating_point():
            tensor.data.mul_(1.5)


@disturbance
def state_of_a_child_loaded(module):
    for part in children(module, "weight"):
        part.load_state_dict({key: tensor * 1.5 for key, tensor in part.state_dict().items()})


@disturbance
def state_assigned(module):
    module.load_state_dict({key: tensor * 1.5 for key, tensor in module.state_dict().items()}, assign=True)


@disturbance
def from_a_vector(module):
    if list(module.parameters()):
        vector = nn.utils.parameters_to_vector(module.parameters()).detach() * 1.5
        nn.utils.vector_to_parameters(vector, module.parameters())


@disturbance
def averaged_weights_exchanged(module):
    kept = [tensor.detach().clone() * 1.5 for tensor in module.parameters()]
    for tensor, average in zip(module.parameters(), kept, strict=True):
        mine = tensor.data.clone()
        tensor.data.copy_(average)
        average.copy_(mine)


@disturbance
def swapped(module):
    for part in children(module, "weight"):
        other = nn.Parameter(part.weight.detach() * 1.5)
        torch.utils.swap_tensors(part.weight, other)


@disturbance
def optimizer_step(module):
    parameters = list(module.parameters())
    if parameters:
        for tensor in parameters:
            tensor.grad = torch.ones_like(tensor)
        torch.optim.SGD(parameters, lr=0.1).step()
        module.zero_grad()


@disturbance
def to_half_and_back(module):
    """The rounding is part of the truth: the double does it, too."""
    kind = next((tensor.dtype for tensor in module.parameters()), torch.float32)
    module.to(torch.bfloat16).to(kind)


def compute(module, x, training, gradients):
    """Output, gradient of x, and what the batch norms keep afterwards."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    modes = [part.training for part in module.modules()]
    if training:
        module.train()
    x = x.clone().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        out = module(x)
        if gradients:
            (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    for part, mode in zip(module.modules(), modes, strict=True):
        part.training = mode
    kept = [t.detach().clone() for part in norms for t in (part.running_mean, part.running_var) if t is not None]
    return [out.detach(), *([x.grad] if gradients else []), *kept]


def check(spec, kind, disturb, fuse_first):
    """None, or what differs."""
    fused, truth = make(spec, kind), make(spec, kind).double()
    x = torch.randn(3, CHANNELS, 5, 6, generator=torch.Generator().manual_seed(2))
    if fuse_first:
        fv.fuse(fused)
        compute(fused, x, False, False)
    for module in (fused, truth):
        try:
            disturb(module)
        except (ValueError, RuntimeError, AttributeError) as error:
            return f"{disturb.__name__} cannot be done: {error}"
    if not fuse_first and not any(part.training for part in fused.modules()):
        fv.fuse(fused)
    for training, gradients in ((False, False), (False, True), (True, True), (True, False), (False, False)):
        found = compute(fused, x, training, gradients)
        with fv.use_fused(False):
            expected = compute(truth, x.double(), training, gradients)
        for a, b in zip(found, expected, strict=True):
            error = (a - b).abs().max() / b.abs().max().clamp(min=1)
            if not error <= 2e-3:
                return f"{disturb.__name__}, training={training}, gradients={gradients}: {error:.2g}"
    return None


@pytest.mark.parametrize("spec,kind", MODULES, ids=[spec for spec, _ in MODULES])
def test_computes_what_the_definition_computes(spec, kind):
    found = [check(spec, kind, disturb, first) for disturb in DISTURBANCES for first in (True, False)]
    assert not [each for each in found if each]


def test_there_are_fused_paths_to_disturb(monkeypatch):
    """Undisturbed, each of them is taken; after a change of a weight, too, so that the test above is about them."""
    from foveate.kernels.ulsam import op as ulsam_op
    from foveate.pooling.attention_pool import AttentionPool

    taken = []
    for place, name in ((ulsam_op, "evaluate"), (gates_op, "gate"), (AttentionPool, "_look")):
        call = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, call=call, **k: [taken.append(1), call(*a, **k)][1])
    for spec, kind in MODULES:
        if spec.split("(")[0] not in FUSED:
            continue
        for change in (lambda _: None, through_data, weight_pruned_and_removed, parametrized_and_removed, in_place):
            taken.clear()
            module = make(spec, kind)
            change(module)
            with torch.no_grad():
                module(torch.randn(2, CHANNELS, 5, 6))
            assert taken == [1], (spec, change)


def test_functional_call_and_ensembles_see_the_given_weights():
    for spec, kind in MODULES:
        module = make(spec, kind)
        x = torch.randn(2, CHANNELS, 5, 6)
        fv.fuse(module)
        given = {key: tensor.detach() * 1.5 for key, tensor in module.named_parameters()}
        with torch.no_grad():
            found = torch.func.functional_call(module, given, (x,))
            after = module(x)
            truth = copy.deepcopy(module).double()
            with fv.use_fused(False):
                undisturbed = truth(x.double())
                truth.load_state_dict({**truth.state_dict(), **given})
                expected = truth(x.double())
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max().clamp(min=1), spec
        assert (after - undisturbed).abs().max() <= 1e-3 * undisturbed.abs().max().clamp(min=1), spec


def test_a_hook_for_all_modules_sees_the_children():
    for spec, kind in MODULES:
        module, names = make(spec, kind), []
        with torch.no_grad():
            module(torch.randn(2, CHANNELS, 5, 6))
            handle = nn.modules.module.register_module_forward_hook(
                lambda part, *_, names=names: names.append(id(part))
            )
            module(torch.randn(2, CHANNELS, 5, 6))
            handle.remove()
        called = {id(part) for part in children(module, "weight") if not isinstance(part, nn.Embedding)}
        if spec.split("(")[0] in FUSED:
            assert called <= set(names), spec
