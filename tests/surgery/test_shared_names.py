"""Attention that shares a name with another is kept apart, and what was cut off is no more counted."""

import pytest
import torch
from torch import nn

import foveate as fv
from foveate.studies.evaluation.audit import _inserted
from foveate.surgery.record import record_of


class Pooled(nn.Module):
    """A network with a module ``pool`` in its middle, and perhaps attention of its own."""

    def __init__(self, *, own=False):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, 2, 1)
        self.pool = nn.MaxPool2d(2)
        self.att = fv.build("ulsam(groups=1)", 16) if own else nn.Identity()
        self.b = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.mean(self.b(self.att(self.pool(self.a(x).relu())))).flatten(1))


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def own_map(model, module, images):
    seen = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(module.attend(*args)))
    with torch.no_grad():
        model.eval()(images)
    handle.remove()
    return seen[0]


def test_a_module_pool_and_a_pool(images):
    model = fv.insert(Pooled().eval(), "ulsam(groups=1) after pool; attention_pool as pool", input_size=32)
    found = fv.attentions(model)
    assert {name: type(module).__name__ for name, module in found.items()} == {
        "pool": "ULSAM",
        "as pool": "AttentionPool",
    }
    maps = {one.name: one.values for one in fv.explain(model, images).maps}
    for name, module in found.items():
        (shown,) = (values for label, values in maps.items() if label.startswith(name))
        torch.testing.assert_close(shown.flatten(), own_map(model, module, images).flatten())
    assert [one.site for one in _inserted(model)] == ["pool", "as pool"]
    cost = fv.cost(model, 32)
    added = {row.name for row in cost.modules if row.change == "added"}
    assert {at.path for at in record_of(model).placed} <= added
    paper = fv.cost(model, 32, counting="paper")
    assert paper.params > paper.baseline.params


@pytest.mark.parametrize("plan", ["double(c_n=1) after att", "ulsam(groups=1) after att"])
def test_own_attention_and_what_was_put_after_it(plan, images):
    torch.manual_seed(0)
    model = Pooled(own=True).eval()
    before = fv.explain(model, images).maps[0]
    fv.insert(model, plan, input_size=32)
    assert list(fv.attentions(model)) == ["att"]
    shown = {one.name: one for one in fv.explain(model, images).maps}
    torch.testing.assert_close(shown[before.name].values, before.values)
    (after,) = (one for name, one in shown.items() if name.startswith("after att"))
    inserted = own_map(model, fv.attentions(model)["att"], images)
    assert after.values.shape == before.values.shape
    assert not torch.equal(after.values, before.values)
    if "ulsam" in plan:
        torch.testing.assert_close(after.values, inserted[:, 0])


def test_other_names_stay():
    model = fv.insert(Pooled(), "se after b.1; ltpa as head on a, b.1; attention_pool as pool", input_size=32)
    assert list(fv.attentions(model)) == ["b.1", "head", "pool"]


@pytest.mark.parametrize("plan", ["se after layer4; ulsam after layer3", "se after layer4", "se after layer4, layer2"])
def test_a_part_that_was_cut_off_costs_nothing(plan):
    model = fv.insert(fv.create_model("resnet10t", num_classes=4), plan, input_size=64)
    plain = fv.create_model("resnet10t", num_classes=4)
    for net in (model, plain):
        net.layer4, net.fc = nn.Identity(), nn.Linear(256, 4)
    left = sum(p.numel() for module in fv.attentions(model).values() for p in module.parameters())
    found, bare = fv.cost(model, 64), fv.cost(plain, 64)
    assert found.params == bare.params + left
    paper = fv.cost(model, 64, counting="paper")
    assert paper.macs >= bare.macs
    assert (found.baseline or found).macs == bare.macs


def test_a_head_that_was_cut_off_is_not_dropped():
    model = fv.insert(fv.create_model("resnet10t", num_classes=4), "ltpa as head; se after layer3", input_size=64)
    assert [row.name for row in fv.dropped(model, 64)] == ["fc"]
    model.reset_classifier(7)
    assert fv.dropped(model, 64) == ()
    paper = fv.cost(model, 64, counting="paper")
    assert paper.params - paper.baseline.params == 2 * 256 * 256 // 16  # SE's, without biases
