"""Module by module: what each costs, that the tree adds up, and what the plan put in and took out."""

import timm
from torch import nn
from torch.nn import functional as F

import foveate as fv


def rows(cost):
    return {row.name: row for row in cost.modules}


def test_every_module_has_a_row_and_what_contains_it_comes_first(blocks):
    cost = fv.cost(blocks, 32)
    assert [row.name for row in cost.modules] == [name for name, _ in blocks.named_modules()]
    assert {row.name: row.kind for row in cost.modules}["stage1.0"] == "Block"


def test_one_block_by_hand(blocks):
    row = rows(fv.cost(blocks, 32))["stage2.1"]
    elements, weights = 16 * 8 * 8, 16 * 16 * 9
    assert row.params == 2 * weights + 4 * 16
    assert row.macs == 2 * weights * 64
    assert row.element_ops == 2 * (2 + 1) * elements  # two norms, two ReLUs
    # A convolution reads its input and weights, a norm its input and four vectors, a ReLU its input; each writes.
    assert row.bytes_moved == 4 * 2 * (2 * elements + weights + 2 * elements + 4 * 16 + 2 * elements)
    assert row.change == ""


def test_the_whole_is_the_first_row_and_the_sum_of_the_leaves(blocks):
    cost = fv.cost(blocks, 32)
    whole, leaves = cost.modules[0], [row for row in cost.modules if not any(True for _ in parts(blocks, row.name))]
    assert (whole.name, whole.params, whole.macs, whole.share) == ("", cost.params, cost.macs, 1.0)
    assert (whole.element_ops, whole.bytes_moved) == (cost.element_ops, cost.bytes_moved)
    assert sum(row.macs for row in leaves) == cost.macs
    assert abs(sum(row.share for row in leaves) - 1) < 1e-9


def parts(model, name):
    return model.get_submodule(name).children()


def test_parts_never_cost_more_than_the_whole():
    model = fv.insert(timm.create_model("test_resnet"), "danet after layer3; se after layer2.0", input_size=64)
    found = rows(fv.cost(model, 64))
    for name, row in found.items():
        below = [found[f"{name}.{part}".lstrip(".")] for part, _ in model.get_submodule(name).named_children()]
        for number in ("macs", "element_ops", "bytes_moved"):
            assert sum(getattr(part, number) for part in below) <= getattr(row, number), (name, number)


def test_a_container_that_never_runs_has_what_runs_in_its_parts():
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))

        def forward(self, x):
            return F.relu(self.layers[1](self.layers[0](x)))

    found = rows(fv.cost(Holds(), 4))
    assert found["layers"].macs == 2 * 9 * 16 == found[""].macs
    assert (found["layers"].element_ops, found[""].element_ops) == (0, 3 * 16)


def test_a_part_that_fails_and_is_caught():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Fails(), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            try:
                return self.first(x)
            except RuntimeError:
                return F.relu(self.second(x))

    found = rows(fv.cost(nn.Sequential(Tries(), nn.Conv2d(3, 3, 1)), 4))
    macs = {name: row.macs for name, row in found.items()}
    assert macs == {"": 2 * 9 * 16, "0": 9 * 16, "0.first": 0, "0.second": 9 * 16, "1": 9 * 16}
    assert (found["0"].element_ops, found["0.first"].element_ops) == (3 * 16, 0)


def test_what_the_plan_puts_in_and_takes_out(blocks):
    fv.insert(blocks, "ulsam(groups=2) replacing stage2.1; se after stage1.0", start="identity", input_size=32)
    cost = fv.cost(blocks, 32)
    added = {row.name: row.kind for row in cost.modules if row.change}
    assert {row.change for row in cost.modules} == {"", "added"}
    assert added["stage2.1"] == added["stage2.1.foveate"] == "ULSAM"
    assert added["stage1.0.foveate"] == "SE"
    assert "stage1.0" not in added
    removed = [row for row in cost.baseline.modules if row.change]
    assert {row.change for row in removed} == {"removed"}
    assert [row.name for row in removed] == [f"stage2.1{part}" for part in ("", ".conv1", ".bn1", ".conv2", ".bn2")]
    # What was added less what was removed is the whole difference.
    first = {"stage2.1": 1, "stage1.0.foveate": 1}
    plus = sum(row.macs for row in cost.modules if row.name in first) - removed[0].macs
    assert plus == (cost - cost.baseline).macs
    plus = sum(row.element_ops for row in cost.modules if row.name in first) - removed[0].element_ops
    assert plus == (cost - cost.baseline).element_ops


def test_pool_and_head_are_marked():
    plan = "attention_pool as pool; ltpa as head on layer2, layer3, layer4"
    model = fv.insert(timm.create_model("test_resnet"), plan, input_size=64)
    cost = fv.cost(model, 64)
    added = {row.kind for row in cost.modules if row.change}
    assert {"AttentionPool", "LearnToPayAttention"} <= added
    assert [row.name for row in cost.baseline.modules if row.change] == ["fc"]


def test_a_head_that_is_gone_removed_nothing():
    model = fv.insert(timm.create_model("test_resnet"), "ltpa as head", input_size=64)
    model.reset_classifier(7)
    cost = fv.cost(model, 64)
    rest = cost.baseline or cost
    assert [row.name for row in (*cost.modules, *rest.modules) if row.change] == []


def test_a_difference_has_no_rows(blocks):
    cost = fv.cost(blocks, 32)
    assert (cost - cost).modules == ()
    assert fv.cost(blocks, 32, counting="paper").modules == ()
