"""Whatever is done to a module that has a fused path, it computes what its definition computes, in float64.

Each disturbance is done alike to a module and to its double in float64, which takes no fused operation; outputs,
gradients and statistics are compared in evaluation and in training, before and after ``foveate.fuse``.
"""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


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
    attend = getattr(module, "attend", None)  # identity has none
    if attend is not None:
        module.attend = lambda *given: 0.5 * attend(*given)


def test_computes_what_the_definition_computes(any_module, disturbed):
    found = [disturbed.check(*any_module, disturb, first) for disturb in DISTURBANCES for first in (True, False)]
    assert not [each for each in found if each]


def test_a_hook_for_all_modules_sees_the_children(disturbed):
    for spec, kind in disturbed.modules:
        module, names = disturbed.make(spec, kind), []
        with torch.no_grad():
            module(torch.randn(2, disturbed.channels, 5, 6))
            handle = nn.modules.module.register_module_forward_hook(
                lambda part, *_, names=names: names.append(id(part))
            )
            module(torch.randn(2, disturbed.channels, 5, 6))
            handle.remove()
        called = {id(part) for part in children(module, "weight") if not isinstance(part, nn.Embedding)}
        if spec.split("(")[0] in {*disturbed.fused} - {"bam"}:
            assert called <= set(names), spec
