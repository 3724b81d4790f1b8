"""The checks that timm's own model tests make, for every network that foveate adds.

Where a network has many equal blocks, it is built with a few of them; what is read and not run is read from the whole,
which is built without data. What needs more than shapes is tested for one network of each file.
"""

import copy
import functools
import math

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import foveate as fv
from foveate import networks
from foveate.errors import FoveateError

torch.set_num_threads(1)
torch.manual_seed(0)

# Without the presets, which are timm's networks with a plan and may be registered, too.
FILES = {name: timm.model_entrypoint(name).__module__ for name in networks.names()}
NAMES = [name for name, file in FILES.items() if file.startswith("foveate.networks.")]
FEW_BLOCKS = {name: {"depth": 4} for name in NAMES if name.startswith("patchconvnet")}
# Further layers follow their pool, so that without it there is nothing to give. timm excepts its VGG for that reason.
EARLY_POOL = ("vgg_ltpa",)


@functools.cache
def whole(name):
    with torch.device("meta"):
        return timm.create_model(name).eval()


@functools.cache
def built(name):
    return build(name, in_chans=3)


def build(name, **options):
    if not options:
        return copy.deepcopy(built(name))  # quicker than to draw the weights anew
    return timm.create_model(name, **FEW_BLOCKS.get(name, {}), **options).eval()


def image(model, batch=1, side=None):
    """Images of the network's own size, or smaller ones."""
    height, width = (side, side) if side else model.default_cfg["input_size"][1:]
    return torch.randn(batch, model.in_chans, height, width)


def little(model):
    return image(model, 2, 64 if model.default_cfg["input_size"][-1] > 64 else 16)


def last(features):
    return features[-1] if isinstance(features, tuple) else features


def size(name):
    return sum(parameter.numel() for parameter in whole(name).parameters())


def smallest_of_each_file():
    found = {}
    for name in sorted(NAMES, key=size):
        found.setdefault(FILES[name], name)
    return list(found.values())


every = pytest.mark.parametrize("name", NAMES)
one_each = pytest.mark.parametrize("name", smallest_of_each_file())


def test_names():
    assert {"nin_cifar", "vgg_ltpa", "mobilenetv1_075", "mobilenetv1_050"} <= set(NAMES)
    assert set(NAMES) <= set(timm.list_models())
    assert not any(timm.models.is_model_pretrained(name) for name in NAMES)


@every
@torch.no_grad()
def test_forward(name):
    model = build(name)
    cfg = model.default_cfg
    features = model.forward_features(image(model))
    assert last(features).shape == (1, model.num_features, *cfg["pool_size"])
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape[0] == 1
    assert pooled.shape[-1] == model.head_hidden_size
    scores = model.forward_head(features)
    assert scores.shape == (1, cfg["num_classes"])
    assert scores.isfinite().all()


@every
def test_backward(name):
    model = build(name, num_classes=42).train()
    scores = model(little(model))
    assert scores.shape == (2, 42)
    scores.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@one_each
def test_gradient_checkpointing_changes_nothing(name):
    model = build(name)
    x = little(model)

    def run():
        model.zero_grad()
        scores = model(x)
        scores.square().sum().backward()
        return scores.detach(), [parameter.grad for parameter in model.parameters()]

    expected = run()
    model.set_grad_checkpointing()
    torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-5)


@every
def test_default_cfg(name):
    model = whole(name)
    cfg, keys = model.default_cfg, model.state_dict()
    assert cfg is model.pretrained_cfg
    assert cfg["architecture"] == name
    assert model.num_classes == cfg["num_classes"] > 0
    assert len(cfg["mean"]) == len(cfg["std"]) == cfg["input_size"][0] == model.in_chans == 3
    classifiers = cfg["classifier"] if isinstance(cfg["classifier"], tuple) else (cfg["classifier"],)
    assert all(len(keys[f"{layer}.weight"]) == model.num_classes for layer in classifiers)
    assert keys[f"{cfg['first_conv']}.weight"].shape[1] == 3
    found = model.get_classifier()
    assert [model.get_submodule(name) for name in classifiers] == list(found if isinstance(found, tuple) else (found,))
    assert timm.data.resolve_data_config(model=model)["input_size"] == cfg["input_size"]


@one_each
@torch.no_grad()
def test_forward_is_features_then_head(name):
    model = build(name)
    x = little(model)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)


@every
@torch.no_grad()
def test_reset_classifier(name):
    model = build(name)
    x = little(model)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    before = {key for key, _ in model.named_parameters()}
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    assert {key for key, _ in model.named_parameters()} == before
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(x).shape == pooled.shape
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)


@one_each
@torch.no_grad()
def test_reset_classifier_keeps_the_rest(name):
    model = build(name)
    before = {key: tensor.double() for key, tensor in model.state_dict().items()}
    model.double().reset_classifier(7)
    assert model(little(model).double()).shape == (2, 7)
    assert not any(module.training for module in model.modules())
    for key, tensor in model.state_dict().items():
        if not key.startswith(model.default_cfg["classifier"]):
            assert torch.equal(tensor.double(), before[key]), key


@every
@torch.no_grad()
def test_without_classes(name):
    model = build(name, num_classes=0)
    x = image(model)
    assert model(x).shape == (1, model.head_hidden_size)
    assert not [*model.get_classifier().parameters()]
    if name in EARLY_POOL:
        with pytest.raises(FoveateError, match="no pool is called ''"):
            model.reset_classifier(0, "")
        return
    unpooled = (1, model.num_features, *model.default_cfg["pool_size"])
    model.reset_classifier(0, "")
    assert model(x).shape == unpooled
    assert build(name, num_classes=0, global_pool="")(x).shape == unpooled


@every
@torch.no_grad()
def test_features_only(name):
    model = build(name, features_only=True)
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    x = image(model)
    maps = model(x)
    assert len(maps) == len(channels) >= 3
    for width, reduction, each in zip(channels, reductions, maps, strict=True):
        assert each.shape == (1, width, *(math.ceil(side / reduction) for side in x.shape[2:]))
    chosen = build(name, features_only=True, out_indices=(0, 2))
    assert [each.shape for each in chosen(x)] == [maps[index].shape for index in (0, 2)]


@one_each
@torch.no_grad()
def test_features_only_gives_the_networks_own_maps(name):
    model, features = build(name), build(name, features_only=True)
    for ours, theirs in zip(features.state_dict().values(), model.state_dict().values(), strict=False):
        ours.copy_(theirs)  # the extractor has the network's tensors in the same order, up to the last map
    x = little(model)
    torch.testing.assert_close(features(x)[-1], last(model.forward_features(x)))


@every
@torch.no_grad()
def test_channels_of_the_image(name):
    model = build(name, in_chans=1)
    assert model.in_chans == 1
    assert model(little(model)).shape == (2, model.num_classes)


@one_each
@torch.no_grad()
def test_other_and_oblong_sizes(name):
    model = build(name)
    side = little(model).shape[-1]
    for height, width in ((side, side + 16), (side + 9, side + 5)):
        assert model(torch.randn(1, 3, height, width)).isfinite().all()


@one_each
@torch.no_grad()
def test_dropout(name):
    model = build(name, drop_rate=0.0).train()
    x = little(model)
    assert torch.equal(model(x), model(x))
    model = build(name, drop_rate=0.5)
    assert model.drop_rate == 0.5
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


@every
def test_every_parameter_has_a_layer(name):
    model = whole(name)
    groups = param_groups_layer_decay(model)
    assert sum(len(group["params"]) for group in groups) == sum(1 for _ in model.parameters())
    rates = sorted({group["lr_scale"] for group in groups})
    assert len(rates) >= 4
    assert rates[-1] == 1
    assert model.group_matcher(coarse=True)


@one_each
@torch.no_grad()
def test_symbolic_trace(name):
    model = build(name)
    x = little(model)
    _, nodes = get_graph_node_names(model)
    traced = create_feature_extractor(model, nodes[-1:])
    with fv.use_fused(False):  # a trace holds the definition
        assert torch.equal(traced(x)[nodes[-1]], model(x))


@pytest.mark.slow(reason="exports of real networks", guards=("foveate/networks/",))
@one_each
@torch.no_grad()
def test_export(name):
    model = build(name)
    x = little(model)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    more = torch.cat([x, x[:1] + 1])
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-5)


@every
def test_no_weights_to_be_had(name, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("it asked the network"))
    few = FEW_BLOCKS.get(name, {})
    with torch.device("meta"):
        with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
            timm.create_model(name, pretrained=True, **few)
        with pytest.raises(
            FoveateError, match=f"the pretrained weights of '{name}' could not be loaded: No pretrained"
        ):
            fv.create_model(name, pretrained=True, **few)


@one_each
@torch.no_grad()
def test_attention_after_a_site(name):
    model = build(name)
    x = little(model)
    before, size = list(model.state_dict()), tuple(x.shape[1:])
    places = fv.sites(model, size)
    assert len(places) >= 3
    assert all(place.kind in ("stage", "block") for place in places)
    fv.insert(model, f"ulsam after {places[-1].name}", input_size=size)
    assert model(x).isfinite().all()
    assert [key for key in model.state_dict() if "foveate" not in key] == before
    assert len(fv.attentions(model)) == 1
    fv.remove(model)
    assert list(model.state_dict()) == before


@one_each
@torch.no_grad()
def test_saved_and_loaded(name, tmp_path):
    model = fv.create_model(name, num_classes=7).eval()  # whole: what is rebuilt by name has all its blocks
    x = little(model)
    again = fv.load(fv.save(model, tmp_path))
    assert type(again) is type(model)
    assert torch.equal(again(x), model(x))
