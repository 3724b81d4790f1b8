"""Weights that change after ``foveate.fuse``, mostly without a trace on the parameter: no answer is a stale one."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import foveate as fv
from foveate.attention.double import DoubleAttention
from foveate.kernels import few_positions
from foveate.kernels.gates import op as gates_op
from foveate.kernels.ulsam import op as ulsam_op
from foveate.pooling.attention_pool import AttentionPool


def children(module):
    return [part for part in module.modules() if part._parameters.get("weight") is not None]


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


DISTURBANCES = []


def disturbance(change):
    DISTURBANCES.append(change)
    return change


@disturbance
def weight_pruned_and_removed(module):
    for part in children(module):
        prune.l1_unstructured(part, "weight", 0.4)
        prune.remove(part, "weight")


@disturbance
def parametrized_and_removed(module):
    for part in children(module):
        parametrize.register_parametrization(part, "weight", Twice())
        parametrize.remove_parametrizations(part, "weight")


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
    for part in children(module):
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
    for part in children(module):
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


def test_computes_what_the_definition_computes(any_module, disturbed):
    found = [disturbed.check(*any_module, disturb, first) for disturb in DISTURBANCES for first in (True, False)]
    assert not [each for each in found if each]


def test_there_are_fused_paths_to_disturb(disturbed, monkeypatch):
    """Undisturbed, each of them is taken; after a change of a weight, too, so that the tests here are about them."""
    taken = []
    for place, name in (
        (ulsam_op, "evaluate"),
        (gates_op, "whole_gate"),
        (gates_op, "joint_gate"),
        (gates_op, "gate_along_channels"),
        (AttentionPool, "_look"),
        (few_positions, "attention"),
        (DoubleAttention, "_infer"),
    ):
        call = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, call=call, **k: [taken.append(1), call(*a, **k)][1])
    for spec, kind in disturbed.modules:
        if spec.split("(")[0] not in disturbed.fused:
            continue
        for change in (lambda _: None, through_data, weight_pruned_and_removed, parametrized_and_removed, in_place):
            taken.clear()
            module = disturbed.make(spec, kind)
            change(module)
            with torch.no_grad():
                module(torch.randn(2, disturbed.channels, 5, 6))
            assert taken == [1], (spec, change)


def test_functional_call_and_ensembles_see_the_given_weights(disturbed):
    for spec, kind in disturbed.modules:
        module = disturbed.make(spec, kind)
        x = torch.randn(2, disturbed.channels, 5, 6)
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
