"""Every registered mechanism, pool and head, and the networks with attention of their own, can be looked at."""

import pytest
import timm
import torch
from torch import nn

from foveate import registry
from foveate.errors import FoveateError
from foveate.explanations.attention import readers
from foveate.explanations.explain import explain
from foveate.networks import create_model
from foveate.surgery.insert import attentions, insert

PLANS = [
    *(f"{name} after body" for name in registry.names("attention") if name != "identity"),  # which has no map
    *(f"{name} as pool" for name in registry.names("pooling")),
    *(f"{name} as head on stem, body" for name in registry.names("heads")),
    "attention_pool(classes=5) as pool",
    "attention_pool(classes=5, heads=2) as pool",
    "attention_pool(heads=3) as pool",
    "channel(form='farthest') after stem",
    "sparse(arrangement='heads') after body",
]


@pytest.mark.parametrize("plan", PLANS)
def test_every_registered_name(model, images, plan):
    insert(model, plan, input_size=(32, 40))
    for method in ("attention", "gradcam"):
        found = explain(model, images, method)
        assert found.maps or found.channels
        for one in found.maps:
            assert one.values.shape[0] == 3
            assert one.values.ndim == 3
            assert one.values.isfinite().all()
        for _, weights in found.channels:
            assert weights.shape[0] == 3
            assert weights.isfinite().all()
        assert found.draw(1).width > 100


def test_what_has_no_map_is_refused_by_name(model, images):
    insert(model, "identity after body", input_size=(32, 40))
    with pytest.raises(FoveateError, match=r"\(Identity\) has no map of its own \(attend\): use method='gradcam'"):
        explain(model, images, "attention")


def own_inputs(model, module, images):
    kept = []
    hook = module.register_forward_pre_hook(lambda _, args: kept.append(args))
    with torch.no_grad():
        model.eval()(images)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("target", [None, 3])
def test_a_token_for_each_class(model, images, target):
    insert(model, "attention_pool(classes=5) as pool", input_size=(32, 40))
    found = explain(model, images, target=target)
    pool = attentions(model)["pool"]
    with torch.no_grad():
        every = pool.attend(*own_inputs(model, pool, images))
    assert [m.name for m in found.maps] == ["pool class map", *(f"pool class {k}" for k in range(5))]
    chosen = found.predictions if target is None else torch.full((3,), 3)
    assert torch.equal(found.targets, chosen)
    torch.testing.assert_close(found.maps[0].values, every[torch.arange(3), chosen])
    torch.testing.assert_close(torch.stack([m.values for m in found.maps[1:]], 1), every)
    assert found.maps[2].targets.tolist() == [1, 1, 1]


def test_of_many_classes_the_own_one_is_shown(model, images):
    model.head = nn.Linear(12, 20)
    del model.pretrained_cfg["label_names"]
    insert(model, "attention_pool(classes=20) as pool", input_size=(32, 40))
    assert [m.name for m in explain(model, images).maps] == ["pool class map"]


def test_saol_shows_what_the_places_see(model, images):
    insert(model, "saol as head on stem, body", input_size=(32, 40))
    found = explain(model, images, target=[4, 0, 2])
    assert [m.name for m in found.maps] == ["head", "head class map", *(f"head class {k}" for k in range(5))]
    head = attentions(model)["head"]
    maps, _ = own_inputs(model, head, images)
    with torch.no_grad():
        seen = head.spatial_probabilities(maps)
    torch.testing.assert_close(found.maps[1].values, seen[[0, 1, 2], [4, 0, 2]])
    torch.testing.assert_close(torch.stack([m.values for m in found.maps[2:]]).sum(0), torch.ones(3, 8, 10))
    # The map weighs the places: together they are the probability.
    torch.testing.assert_close((found.maps[0].values * seen[:, 1]).sum((1, 2)), model(images).softmax(1)[:, 1].detach())


def test_learn_to_pay_attention_has_its_levels(model, images):
    insert(model, "ltpa as head on stem.0, stem, body", input_size=(32, 40))
    found = explain(model, images)
    assert [m.name for m in found.maps] == [f"head level {n}/3" for n in (1, 2, 3)]
    assert [tuple(m.values.shape[1:]) for m in found.maps] == [(16, 20), (16, 20), (8, 10)]


@pytest.mark.parametrize(("name", "options", "names"), [
    ("patchconvnet_s60", {"depth": 2, "channels": 16}, ["pool"]),
    ("patchconvnet_s60", {"depth": 2, "channels": 16, "tokens": "class"}, ["pool class map"]),
    ("patchconvnet_s60", {"depth": 2, "channels": 16, "heads": 2}, ["pool head 1/2", "pool head 2/2"]),
    ("vgg_ltpa", {}, ["head level 1/3", "head level 2/3", "head level 3/3"]),
])  # fmt: skip
def test_networks_with_attention_of_their_own(name, options, names):
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, **options)
    found = explain(model, torch.randn(2, 3, 32, 64))
    assert [m.name for m in found.maps][: len(names)] == names
    assert found.draw().width > 100


def test_inserted_attention_stands_before_the_networks_own():
    torch.manual_seed(0)
    model = create_model("patchconvnet_s60", num_classes=4, depth=2, channels=16)
    insert(model, "danet after blocks.0", input_size=32)
    assert [(one.name, one.inserted) for one in readers(model)] == [("blocks.0", True), ("pool", False)]


@pytest.mark.parametrize("plan", ["position after body", "non_local after body", "se(start='identity') after body"])
def test_what_changes_nothing_says_so(model, images, plan):
    insert(model, plan)
    found = explain(model, images)
    names = [m.name for m in found.maps] + [name for name, _ in found.channels]
    assert all(name.endswith(", changes nothing") for name in names)
    assert all(("gate 0" in name) == ("identity" in plan) for name in names)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "foveate" in key:
                parameter.fill_(0.5)
    found = explain(model, images)
    names = [m.name for m in found.maps] + [name for name, _ in found.channels]
    assert not any("nothing" in name for name in names)
    assert all(("gate 0.5" in name) == ("identity" in plan) for name in names)


def test_the_gate_of_a_pool(model, images):
    insert(model, "attention_pool(start='identity') as pool", input_size=(32, 40))
    assert [m.name for m in explain(model, images).maps] == ["pool, gate 0, changes nothing"]


def test_the_note_is_of_all_images(model):
    insert(model, "position after body")
    with torch.no_grad():
        attentions(model)["body"].gamma.fill_(1e-12)  # rounds away where x is large, not where it is 0
    images = torch.randn(9, 3, 32, 32)
    images[8] = 0
    assert len({m.name for m in explain(model, images, batch_size=2).maps}) == 1


def test_a_target_without_a_map_for_each_class(model, images):
    insert(model, "ulsam after body")
    with pytest.raises(FoveateError, match="target= does not change"):
        explain(model, images, target=1)
    with pytest.raises(FoveateError, match="no inserted attention"):
        explain(timm.create_model("resnet18"), images, target=1)
