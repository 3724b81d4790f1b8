"""What insert puts in, remove takes out; in between the network keeps its keys, weights, modes and children."""

import copy

import pytest
import torch
from torch import nn

import foveate as fv
from foveate.errors import FoveateError
from foveate.surgery.wrappers import Gate, Replacement


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_equal_states(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", fv.names())
def test_identity_start_changes_no_bit(name, blocks, images):
    with torch.no_grad():
        expected = blocks(images)
        fv.insert(blocks, f"{name} after stage1.0, stage2.1; se after stage2.0", start="identity", input_size=64)
        assert torch.equal(blocks(images), expected)


def test_the_default_start_is_the_mechanism(blocks, images):
    with torch.no_grad():
        expected = blocks(images)
        fv.insert(blocks, "se after stage1.0")
        assert not torch.equal(blocks(images), expected)


def test_start_of_one_mechanism_alone(blocks, images):
    fv.insert(blocks, "se(start='identity') after stage1.0; cbam after stage1.1")
    kinds = [type(module) for module in blocks.modules()]
    assert kinds.count(Gate) == 1
    assert str(fv.plan_of(blocks)) == "se(start='identity') after stage1.0; cbam after stage1.1"


def test_what_is_written_wins_over_the_argument(blocks):
    fv.insert(blocks, "se(start='mechanism') after stage1.0; cbam after stage1.1", start="identity")
    assert [type(m.foveate).__name__ for m in (blocks.stage1[0], blocks.stage1[1])] == ["SE", "Gate"]


def test_after_keeps_every_key_and_value(blocks):
    before = state(blocks)
    fv.insert(blocks, "ulsam after stage1.0; se after stage2")
    after = blocks.state_dict()
    assert [key for key in after if key in before] == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_after_computes_the_mechanism_of_what_the_block_gives(blocks, images):
    whole = copy.deepcopy(blocks)
    fv.insert(blocks, "cbam(reduction=2) after stage1.1")
    attention = fv.attentions(blocks)["stage1.1"]
    with torch.no_grad():
        x = attention(whole.stage1(whole.stem(images)))
        expected = whole.head(whole.stage2(x).mean((2, 3)))
        assert torch.equal(blocks(images), expected)


def test_replacing_computes_the_mechanism_in_place_of_the_block(blocks, images):
    whole = copy.deepcopy(blocks)
    fv.insert(blocks, "ulsam(groups=2) replacing stage2.1")
    attention = fv.attentions(blocks)["stage2.1"]
    with torch.no_grad():
        x = whole.stage2[0](whole.stage1(whole.stem(images)))
        expected = whole.head(whole.stage2[2](attention(x)).mean((2, 3)))
        assert torch.equal(blocks(images), expected)
    assert not any(key.startswith("stage2.1.conv") for key in blocks.state_dict())


def test_after_and_replacing_in_one_plan(mobilenet, images):
    before = state(mobilenet)
    plan = "ulsam(groups=4) replacing blocks.4.1, blocks.4.2; se after blocks.3.*, blocks.5.2"
    assert fv.insert(mobilenet, plan) is mobilenet
    assert set(fv.attentions(mobilenet)) == {
        "blocks.4.1",
        "blocks.4.2",
        "blocks.5.2",
        *(f"blocks.3.{i}" for i in range(4)),
    }
    assert mobilenet(images).shape == (3, 10)
    fv.remove(mobilenet)
    assert_equal_states(mobilenet.state_dict(), before)


@pytest.mark.parametrize("plan", ["se after stage1.0", "ulsam replacing stage2.1; se after stage1", "cbam after stem"])
@pytest.mark.parametrize("start", ["mechanism", "identity"])
def test_remove_leaves_nothing_behind(plan, start, blocks, untouched):
    with untouched(blocks):
        fv.insert(blocks, plan, start=start)
        assert fv.remove(blocks) is blocks
    assert fv.plan_of(blocks) is None
    assert fv.attentions(blocks) == {}
    assert not any(module._forward_hooks for module in blocks.modules())


def test_remove_without_a_plan_does_nothing(blocks, untouched):
    with untouched(blocks):
        fv.remove(blocks)


def test_insert_and_remove_many_times(blocks, images):
    expected, before = blocks(images), state(blocks)
    for plan in ("se after stage1", "ulsam replacing stage1.1", "cbam after stage2.2; se after stem"):
        fv.remove(fv.insert(blocks, plan))
    assert torch.equal(blocks(images), expected)
    assert_equal_states(blocks.state_dict(), before)


def test_remove_keeps_what_was_trained_and_gives_blocks_back_as_they_were(blocks, images):
    block = state(blocks.stage2[1])
    fv.insert(blocks, "se after stage1.0; ulsam replacing stage2.1")
    optimiser = torch.optim.SGD(blocks.parameters(), 0.1)
    blocks.train()(images).square().sum().backward()
    optimiser.step()
    blocks.eval()
    trained = {key: value for key, value in state(blocks).items() if "foveate" not in key}
    fv.remove(blocks)
    now = blocks.state_dict()
    assert all(torch.equal(now[key], trained[key]) for key in trained)
    assert_equal_states(blocks.stage2[1].state_dict(), block)


def test_a_replaced_block_follows_the_model_when_it_comes_back(blocks):
    fv.insert(blocks, "ulsam replacing stage2.1")
    fv.remove(blocks.to(torch.float64).train())
    assert {p.dtype for p in blocks.parameters()} == {torch.float64}
    assert all(module.training for module in blocks.modules())


def test_a_model_of_two_dtypes_gets_its_block_back_bit_by_bit(blocks):
    blocks.stage2[1].to(torch.bfloat16).bn1.float()
    before = state(blocks.stage2[1])

    class Cast(nn.Module):
        def forward(self, x):
            return x

    blocks.stage2[1].forward = Cast().forward  # a block whose parts differ in dtype needs its own way to run
    fv.insert(blocks, "se replacing stage2.1")
    fv.remove(blocks)
    assert [v.dtype for v in blocks.stage2[1].state_dict().values()] == [v.dtype for v in before.values()]
    assert_equal_states(blocks.stage2[1].state_dict(), before)


def test_remove_after_the_user_exchanged_a_part(blocks, images):
    fv.insert(blocks, "se after stage1.0; ulsam replacing stage2.1; cbam after stage2.2")
    blocks.stage1 = nn.Identity()
    mine = blocks.stage2[1] = nn.Identity()
    assert set(fv.attentions(blocks)) == {"stage2.2"}
    fv.remove(blocks)
    assert blocks.stage2[1] is mine
    assert not any("foveate" in key for key in blocks.state_dict())
    assert blocks(images).shape == (3, 5)


def test_each_module_keeps_its_mode(blocks):
    blocks.train()
    blocks.stage2.eval()
    before = {name: module.training for name, module in blocks.named_modules()}
    fv.insert(blocks, "se after stage1.0; cbam after stage2.1; ulsam replacing stage2.2", start="identity")
    now = {name: module.training for name, module in blocks.named_modules()}
    assert all(now[name] == mode for name, mode in before.items() if not name.startswith("stage2.2."))
    for site, expected in (("stage1.0", True), ("stage2.1", False), ("stage2.2", False)):
        assert {m.training for m in fv.attentions(blocks)[site].modules()} == {expected}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_mechanisms_take_the_dtype_of_the_model(dtype, blocks, images):
    blocks.to(dtype)
    expected = blocks(images.to(dtype))
    fv.insert(blocks, "ulsam after stage1.0; cbam after stage2", start="identity")
    assert {p.dtype for p in blocks.parameters()} == {dtype}
    assert torch.equal(blocks(images.to(dtype)), expected)


def test_a_model_without_data(blocks):
    fv.insert(blocks.to("meta"), "se after stage1.0; ulsam replacing stage2.1")
    assert all(p.is_meta for p in blocks.parameters())


def test_the_gate_trains_and_then_the_mechanism(blocks, images):
    fv.insert(blocks, "se after stage1.0; ulsam(groups=2) after stage2", start="identity")
    target = torch.randn(3, 5)
    optimiser = torch.optim.SGD(blocks.parameters(), 0.05)
    gates = [module for module in blocks.modules() if isinstance(module, Gate)]

    def step():
        optimiser.zero_grad()
        (blocks(images) - target).square().sum().backward()
        moved = [[p.grad.abs().sum().item() > 0 for p in gate.mechanism.parameters()] for gate in gates]
        gradients = [gate.gate.grad.item() for gate in gates]
        optimiser.step()
        return gradients, moved

    gradients, moved = step()
    assert all(gradients)
    assert not any(any(each) for each in moved)  # the gate was 0
    _, moved = step()
    assert all(any(each) for each in moved)


def test_the_seed_decides_the_weights(make_blocks):
    def weights(seed, before=None):
        torch.manual_seed(5)
        if before:
            torch.rand(before)
        model = fv.insert(make_blocks(), "se after stage1.0", seed=seed)
        return fv.attentions(model)["stage1.0"].fc1.weight

    assert torch.equal(weights(1), weights(1, before=3))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(weights(None), weights(None, before=3))  # that of manual_seed


def test_two_mechanisms_of_one_plan_are_drawn_apart(blocks):
    fv.insert(blocks, "se after stage1.0, stage1.1")
    one, other = fv.attentions(blocks).values()
    assert not torch.equal(one.fc1.weight, other.fc1.weight)


def test_no_default_device_is_taken_for_the_mechanisms(blocks):
    with torch.device("meta"):
        fv.insert(blocks, "se after stage1.0")
    assert {p.device.type for p in blocks.parameters()} == {"cpu"}


def test_plan_of_names_modules_and_joins_neighbours(mobilenet):
    fv.insert(mobilenet, "se after #3, blocks.2.*; cbam replacing blocks.5.1; se after blocks.1.1")
    listed = fv.sites(mobilenet)
    expected = (
        f"se after {listed[3].name}, blocks.2.0, blocks.2.1, blocks.2.2; cbam replacing blocks.5.1; se after blocks.1.1"
    )
    assert str(fv.plan_of(mobilenet)) == expected
    assert fv.Plan.parse(expected) == fv.plan_of(mobilenet)


def test_a_plan_as_data_is_a_plan_as_text(make_blocks):
    plan = fv.Plan((fv.Placement(fv.Spec("se", (("reduction", 4),)), "after", ("stage1.0",)),))
    assert fv.plan_of(fv.insert(make_blocks(), plan)) == fv.plan_of(fv.insert(make_blocks(), str(plan)))


def test_attentions_are_without_gates_and_by_site(blocks):
    fv.insert(blocks, "ulsam(groups=2) after stage1.0; se replacing stage2.2", start="identity")
    assert {site: type(m).__name__ for site, m in fv.attentions(blocks).items()} == {
        "stage1.0": "ULSAM",
        "stage2.2": "SE",
    }
    assert isinstance(blocks.stage2[2], Replacement)


def test_vanilla_weights_load_strictly(make_blocks, images):
    other = make_blocks()
    blocks = fv.insert(make_blocks(), "se after stage1.0; ulsam replacing stage2.1", start="identity")
    mine = {key: value.clone() for key, value in blocks.state_dict().items() if "foveate" in key}
    assert mine
    blocks.load_state_dict(other.state_dict())
    now = blocks.state_dict()
    assert all(torch.equal(now[key], value) for key, value in mine.items())
    theirs = other.state_dict()
    assert all(torch.equal(now[key], theirs[key]) for key in now if "foveate" not in key)
    # The replaced block took its weights from the checkpoint, too.
    assert_equal_states(fv.remove(blocks).state_dict(), theirs)
    assert torch.equal(blocks(images), other(images))


def test_vanilla_weights_load_into_a_wrapped_model(make_blocks):
    blocks = fv.insert(make_blocks(), "se after stage1.0; ulsam replacing stage2.1")
    wrapped = nn.Sequential(blocks)
    wrapped.load_state_dict({f"0.{key}": value for key, value in make_blocks().state_dict().items()})


def test_vanilla_weights_of_an_old_torch_load(make_blocks):
    blocks = fv.insert(make_blocks(), "ulsam after stage1.0")
    old = {key: value for key, value in make_blocks().state_dict().items() if "num_batches" not in key}
    blocks.load_state_dict(old)


@pytest.mark.parametrize("plan", ["se after stage1.0", "se after stage1.0; ulsam replacing stage2.1"])
def test_its_own_weights_load_strictly(plan, make_blocks, images):
    one, other = (fv.insert(make_blocks(), plan, seed=seed) for seed in (1, 2))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(images), other(images))


def test_weights_with_a_part_of_the_attention_are_refused(make_blocks):
    blocks = fv.insert(make_blocks(), "se after stage1.0, stage1.1")
    whole = blocks.state_dict()
    for lost in ("stage1.0.foveate.fc1.weight", "stage1.0.foveate."):
        part = {key: value for key, value in whole.items() if not key.startswith(lost)}
        with pytest.raises(RuntimeError, match="Missing key.*stage1.0.foveate.fc1.weight"):
            blocks.load_state_dict(part)


def test_vanilla_weights_with_a_missing_or_an_unknown_key_are_refused(make_blocks):
    blocks = fv.insert(make_blocks(), "se after stage1.0; ulsam replacing stage2.1")
    vanilla = make_blocks().state_dict()
    with pytest.raises(RuntimeError, match="Missing key.*stem.weight"):
        blocks.load_state_dict({key: value for key, value in vanilla.items() if key != "stem.weight"})
    with pytest.raises(RuntimeError, match="Unexpected key.*extra"):
        blocks.load_state_dict({**vanilla, "extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="conv2.weight"):
        blocks.load_state_dict({key: value for key, value in vanilla.items() if key != "stage2.1.conv2.weight"})


def test_weights_of_the_wrong_plan_are_refused(make_blocks):
    one = fv.insert(make_blocks(), "se after stage1.0")
    other = fv.insert(make_blocks(), "se after stage1.1")
    with pytest.raises(RuntimeError, match="stage1"):
        one.load_state_dict(other.state_dict())


def test_a_mechanism_without_parameters(make_blocks, images, monkeypatch):
    class Mean(nn.Module):
        def __init__(self, channels):
            super().__init__()

        def forward(self, x):
            return x - x.mean((2, 3), keepdim=True)

    monkeypatch.setattr("foveate.registry._REGISTERED", {})
    fv.register("mean_free", Mean)
    blocks = fv.insert(make_blocks(), "mean_free replacing stage2.1; mean_free after stage1")
    assert blocks(images).shape == (3, 5)
    blocks.load_state_dict(blocks.state_dict())
    vanilla = make_blocks().state_dict()
    blocks.load_state_dict(vanilla)
    assert_equal_states(fv.remove(blocks).state_dict(), vanilla)


def test_sites_are_the_same_with_a_plan(mobilenet):
    before = fv.sites(mobilenet)
    fv.insert(mobilenet, "ulsam replacing blocks.4.1; se after bn1, blocks.5, conv_head", start="identity")
    assert fv.sites(mobilenet) == before


def test_load_is_the_only_way_a_block_is_lost(blocks):
    fv.insert(blocks, "ulsam replacing stage2.1")
    blocks._foveate.removed["stage2.1"].original = False
    with pytest.raises(FoveateError, match="cannot put back 'stage2.1'"):
        fv.remove(blocks)
    assert fv.plan_of(blocks) is not None


def test_the_identity_keeps_the_strides_of_a_batch_of_one():
    tokens = torch.rand(1, 12, 8)
    x = tokens.transpose(1, 2).view(1, 8, 3, 4)  # the batch's stride is 8, where 96 would do
    gate = fv.insert(nn.Sequential(nn.Conv2d(8, 8, 1)), "se after 0", start="identity", input_size=(8, 3, 4))[0].foveate
    out = gate(x.requires_grad_())
    assert out.stride() == x.stride()
    assert torch.equal(out, x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
