"""What comes back with remove: the very classifier, and blocks in the mode and the type that they would have."""

import copy
import pickle
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

import foveate as fv
from foveate.errors import FoveateError
from foveate.surgery.wrappers import PerClass

POOL = "attention_pool(classes=5) as pool"


class Cosine(nn.Linear):
    """The cosine of features and weights, times a number."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        return self.scale * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


@pytest.fixture
def resnet5():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=5).eval()


# ---- a classifier that gets features for each class ----


@pytest.mark.parametrize("library", ["torch", "timm"])
def test_the_classifier_is_the_same_object_throughout(library, blocks, resnet5, images, untouched):
    model, name = (blocks, "head") if library == "torch" else (resnet5, "fc")
    linear, seen = model.get_submodule(name), []
    kind, linear.names, linear.kind = type(linear), ["a", "b"], "mine"
    linear.register_forward_hook(lambda *_: seen.append(1))
    with untouched(model):
        expected = model(images)
        fv.insert(model, POOL, input_size=64)
        assert model.get_submodule(name) is linear
        assert isinstance(linear, PerClass)
        assert not torch.allclose(model(images), expected)
        other = copy.deepcopy(model)
        assert torch.equal(other(images), model(images))
        fv.remove(other)
        fv.remove(model)
        for each in (model, other):
            assert type(each.get_submodule(name)) is kind
            assert (each.get_submodule(name).names, each.get_submodule(name).kind) == (["a", "b"], "mine")
            assert torch.equal(each(images), expected)
    assert seen.count(1) == 6


def test_weights_that_were_exchanged_meanwhile_stay(blocks, images):
    fv.insert(blocks, POOL, input_size=64)
    blocks.head.weight = nn.Parameter(torch.ones(5, 16))
    blocks.head.bias = None
    blocks.double()
    fv.remove(blocks)
    assert type(blocks.head) is nn.Linear
    assert torch.equal(blocks.head.weight, torch.ones(5, 16, dtype=torch.float64))
    assert blocks(images.double()).shape == (3, 5)


def test_a_classifier_that_is_parametrized_meanwhile(blocks, images):
    expected = blocks(images)
    fv.insert(blocks, POOL, input_size=64)
    weight_norm(blocks.head)
    fv.remove(blocks)
    assert type(blocks.head).__bases__ == (nn.Linear,)
    torch.testing.assert_close(blocks(images), expected)
    assert type(remove_parametrizations(blocks.head, "weight")) is nn.Linear


def test_a_pruned_classifier_stays_pruned(blocks, images):
    prune.l1_unstructured(blocks.head, "weight", 0.5)
    expected = blocks(images)
    fv.insert(blocks, POOL, input_size=64)
    assert blocks(images).shape == (3, 5)
    assert torch.equal(fv.remove(blocks)(images), expected)
    assert prune.is_pruned(blocks.head)


def own_forward(model):
    model.head.forward = lambda x: x[:, :5]


@pytest.mark.parametrize(
    "change,found",
    [
        (
            lambda model: setattr(model, "head", Cosine(16, 5)),
            "a Cosine with a class, a parametrization or a forward pass of its own",
        ),
        (
            lambda model: weight_norm(model.head),
            "a ParametrizedLinear with a class, a parametrization or a forward pass of its own",
        ),
        (own_forward, "a Linear with a class, a parametrization or a forward pass of its own"),
        (lambda model: setattr(model, "head", nn.Linear(16, 4)), "not a Linear with as many outputs but Linear"),
    ],
)
def test_a_classifier_with_a_rule_of_its_own_is_refused(change, found, blocks, untouched):
    change(blocks)
    with (
        untouched(blocks),
        pytest.raises(FoveateError, match=f"for each of 5 classes, and 'head' is {found}") as caught,
    ):
        fv.insert(blocks, POOL, input_size=64)
    assert "\n" not in str(caught.value)


# ---- modes and types of blocks that come back ----


@pytest.mark.parametrize("plan", ["ulsam replacing stage2.1", "identity replacing stage2.1"])
def test_frozen_norms_of_a_block_stay_frozen(plan, blocks, untouched):
    blocks.train()
    blocks.stage2[1].bn1.eval()
    with untouched(blocks):
        fv.insert(blocks, plan)
        other = copy.deepcopy(blocks)
        fv.remove(blocks)
    assert not any(module.training for module in fv.remove(other.eval()).modules())


def test_a_copy_for_shapes_is_in_eval_mode_throughout(blocks):
    blocks.stage2[1].bn1.train()
    before = fv.cost(blocks, 32).params
    fv.insert(blocks, "se replacing stage2.1")
    assert fv.cost(blocks, 32).baseline.params == before
    assert blocks._foveate.removed["stage2.1"].module.bn1.training


@pytest.mark.parametrize(
    "plan", ["identity replacing stage2.1, stage2.2", "identity replacing stage1.0; se after stem"]
)
def test_a_block_follows_the_model_where_nothing_stands_in_its_place(plan, blocks, images):
    expected = blocks(images)
    fv.insert(blocks, plan)
    fv.remove(blocks.double())
    assert {p.dtype for p in blocks.parameters()} == {torch.float64}
    torch.testing.assert_close(blocks(images.double()).float(), expected, rtol=1e-4, atol=1e-5)
    fv.remove(fv.insert(blocks, plan).to("meta"))
    assert {p.device.type for p in blocks.parameters()} == {"meta"}


def test_a_block_of_another_dtype_keeps_it_where_the_model_was_not_moved(blocks):
    blocks.stage2[1].to(torch.bfloat16)
    blocks.stage2[1].forward = nn.Identity().forward  # a block in another dtype needs its own way to run
    fv.remove(fv.insert(blocks, "identity replacing stage2.1"))
    assert {p.dtype for p in blocks.stage2[1].parameters()} == {torch.bfloat16}


# ---- layers that are parametrized while attention follows them ----


def test_a_parametrized_layer_is_copied_and_given_back(blocks, images):
    before = blocks(images)
    fv.insert(blocks, "se after stem, stage1.0.bn1")
    expected = blocks(images)
    weight_norm(blocks.stem)
    torch.testing.assert_close(blocks(images), expected)
    other = copy.deepcopy(blocks)
    assert torch.equal(other(images), blocks(images))
    remove_parametrizations(other.stem, "weight")  # of the copy alone
    torch.testing.assert_close(other(images), expected)
    torch.testing.assert_close(blocks(images), expected)
    assert fv.cost(blocks, 64).params > fv.cost(blocks, 64).baseline.params
    alone = copy.deepcopy(blocks.stem)  # as by a tool that fuses it with a norm
    assert type(alone).__bases__ == (nn.Conv2d,)
    own = nn.functional.conv2d(images, blocks.stem.weight, blocks.stem.bias, 2, 1)
    torch.testing.assert_close(alone(images), own)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(blocks.stem)
    fv.remove(blocks)
    assert type(blocks.stem).__bases__ == (nn.Conv2d,)
    for each in (blocks, copy.deepcopy(blocks)):
        torch.testing.assert_close(each(images), before)
    assert type(remove_parametrizations(blocks.stem, "weight")) is nn.Conv2d


def test_a_layer_whose_parametrization_is_taken_off_first(blocks, images):
    before = blocks(images)
    fv.insert(blocks, "se after stem")
    expected = blocks(images)
    remove_parametrizations(weight_norm(blocks.stem), "weight")
    torch.testing.assert_close(blocks(images), expected)
    fv.remove(blocks)
    assert type(blocks.stem) is nn.Conv2d
    torch.testing.assert_close(blocks(images), before)


# ---- a part that carries the plan ----


def test_remove_takes_out_the_plan_of_a_part(make_blocks, images):
    whole = nn.Sequential(nn.Identity(), make_blocks())
    expected = whole(images)
    fv.insert(whole[1], "se after stage1.0; ulsam replacing stage2.1")
    with pytest.raises(FoveateError, match=r"remove it with fv.remove\(model.get_submodule\('1'\)\)"):
        fv.insert(whole, "se after 1.stage1.0")
    assert fv.remove(whole) is whole
    assert fv.plan_of(whole) is None
    assert torch.equal(whole(images), expected)
    assert str(fv.plan_of(fv.insert(whole, "se after 1.stage1.0"))) == "se after 1.stage1.0"


def test_a_part_that_is_compiled_is_refused_as_the_whole_is(make_blocks):
    inner = fv.insert(make_blocks(), "se after stage1.0")
    whole = nn.Sequential(nn.Sequential(torch.compile(inner, backend="eager")))
    with pytest.raises(FoveateError, match="a compiled model would go on"):
        fv.remove(whole)
    assert str(fv.plan_of(whole)) == "se after 0.0._orig_mod.stage1.0"


def test_several_parts_are_named(make_blocks):
    two = nn.Sequential(*(fv.insert(make_blocks(), "se after stage1.0") for _ in range(2)))
    with pytest.raises(
        FoveateError, match=r"'0', '1': take out each by itself, as with fv.remove\(.*'0'\)\)"
    ) as caught:
        fv.remove(two)
    assert "\n" not in str(caught.value)
    fv.remove(two[0])
    fv.remove(two)
    assert fv.plan_of(two) is None


# ---- names that a plan cannot hold ----


@pytest.mark.parametrize("name", ["a b", "a/b", "a+b", "é", "x:y", "1-2", "a*b", "#1", "a,b"])
def test_a_name_that_cannot_be_written_is_refused(name, untouched):
    parts = [("stem", nn.Conv2d(3, 4, 3)), (name, nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())), ("end", nn.ReLU())]
    model = nn.Sequential(OrderedDict(parts))
    for pattern in ("*.0", "layer:first"):
        with untouched(model), pytest.raises(FoveateError, match="cannot be written in a plan") as caught:
            fv.insert(model, f"se after {pattern}", input_size=16)
        assert repr(f"{name}.0") in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FoveateError, match="cannot be written in a plan"):
        fv.resolve_family(model, "se after any of layer:all", 16)
    assert str(fv.plan_of(fv.insert(model, "se after stem", input_size=16))) == "se after stem"


@pytest.mark.parametrize("name", ["a-b", "0", "1e5", "-1", "_x", "on", "after", "00"])
def test_a_name_that_can_be_written_is_taken(name):
    model = nn.Sequential(OrderedDict([("stem", nn.Conv2d(3, 4, 3)), (name, nn.Conv2d(4, 4, 3))]))
    plan = fv.plan_of(fv.insert(model, f"se after {name}, stem", input_size=16))
    assert plan.placements[0].sites == (name, "stem")
    assert fv.Plan.parse(str(plan)) == plan
