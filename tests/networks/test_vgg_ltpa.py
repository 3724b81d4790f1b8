"""VGG with learned attention: its numbers and taps, that only what is attended to is classified, and its options."""

import pytest
import timm
import torch

import foveate as fv
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.errors import FoveateError

torch.set_num_threads(1)

HEADS = [{}, {"score": "dot"}, {"join": "separate"}, {"join": "separate", "combine": "product", "score": "dot"}]
AUTHORS = {"project": "pooled", "regularise": True, "trunk_dropout": True, "drop_rate": 0.5}


def vgg(**options):
    torch.manual_seed(0)
    return timm.create_model("vgg_ltpa", **options).eval()


def skeleton(**options):
    with torch.device("meta"):
        return timm.create_model("vgg_ltpa", **options).eval()


def images(batch=2, height=16, width=16):
    return torch.randn(batch, 3, height, width)


TRUNK = [  # (inputs, outputs, side of the map) of each convolution
    *((3, 64, 32), (64, 64, 32), (64, 128, 32), (128, 128, 32), (128, 256, 32), (256, 256, 32), (256, 256, 32)),
    *((256, 512, 16), (512, 512, 16), (512, 512, 16), (512, 512, 8), (512, 512, 8), (512, 512, 8)),
    *((512, 512, 4), (512, 512, 2)),
]


@pytest.mark.parametrize(
    "options,head",
    [
        ({}, 256 * 512 + 3 * 512 + 1536 * 100 + 100),
        ({"score": "dot"}, 256 * 512 + 1536 * 100 + 100),
        ({"join": "separate"}, 256 * 512 + 3 * 512 + 3 * (512 * 100 + 100)),
        ({"project": "pooled"}, 512 * 256 + 256 + 2 * 512 + 1280 * 100 + 100),
    ],
)
def test_parameters(options, head):
    trunk = sum(9 * inputs * outputs + outputs + 2 * outputs for inputs, outputs, _ in TRUNK) + 512 * 512 + 512
    assert fv.cost(skeleton(**options)).params == trunk + head


def test_numbers():
    cost = fv.cost(skeleton())
    assert cost.params == 19_993_764
    assert fv.cost(skeleton(score="dot")).params == 19_992_228
    counts = count_operations(skeleton(), (3, 32, 32))
    trunk = sum(9 * inputs * outputs * side * side for inputs, outputs, side in TRUNK) + 512 * 512
    assert counts[""].macs - counts["head"].macs == trunk == 3_786_342_400
    assert cost.macs == trunk + counts["head"].macs


def test_taps():
    model = skeleton()
    features = model.forward_features(torch.empty(1, 3, 32, 32, device="meta"))
    assert [tuple(each.shape[1:]) for each in features] == [(256, 32, 32), (512, 16, 16), (512, 8, 8), (512, 1, 1)]


@pytest.mark.parametrize("options", HEADS)
@torch.no_grad()
def test_maps_of_attention(options):
    model, x = vgg(**options), images(2, 16, 24)
    maps = model.attend(x)
    assert [tuple(each.shape) for each in maps] == [(2, 16, 24), (2, 8, 12), (2, 4, 6)]
    for each in maps:
        assert each.min() >= 0
        torch.testing.assert_close(each.sum((1, 2)), torch.ones(2))


@torch.no_grad()
def test_equations():
    model = vgg(score="dot").double()
    *maps, coarsest = model.forward_features(images().double())
    g = coarsest.mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    vectors = []
    for level, each in enumerate(maps):
        local = each.flatten(2).transpose(1, 2)  # (B, places, C)
        if level == 0:
            local = local @ model.state_dict()["head.feature_maps.0.weight"].flatten(1).T
        a = torch.einsum("bnc,bc->bn", local, g).softmax(1)
        vectors.append(torch.einsum("bn,bnc->bc", a, local))
    classifier = model.get_classifier()
    expected = torch.cat(vectors, 1) @ classifier.weight.T + classifier.bias
    torch.testing.assert_close(model.forward_head((*maps, coarsest)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [*HEADS, AUTHORS])
@torch.no_grad()
def test_scores_come_from_the_attended_vectors_alone(options):
    model, x = vgg(**options), images()
    vectors = model.forward_head(model.forward_features(x), pre_logits=True)
    found = model.get_classifier()
    found = found if isinstance(found, tuple) else (found,)
    each = [
        classifier(part)
        for classifier, part in zip(found, vectors.split([c.in_features for c in found], 1), strict=True)
    ]
    if len(each) == 1:
        expected = each[0]
    elif options.get("combine") == "product":
        expected = sum(each)
    else:
        expected = torch.stack(each).softmax(2).mean(0).log()
    torch.testing.assert_close(model(x), expected)


def test_what_makes_g_learns_with_dot_only():
    # softmax(<u, l + g>) over the places is softmax(<u, l>): the parameterised form does not ask g.
    for score, asks in (("parameterised", False), ("dot", True)):
        model = vgg(score=score).double()
        model(images().double()).square().sum().backward()
        largest = {
            block: max(p.grad.abs().max().item() for p in getattr(model, block).parameters())
            for block in ("block5", "block6", "fc")
        }
        assert largest["block5"] > 0
        assert (largest["block6"] > 1e-9 * largest["block5"]) == asks
        assert (largest["fc"] > 1e-9 * largest["block5"]) == asks


@pytest.mark.parametrize("options", HEADS)
@torch.no_grad()
def test_reset_classifier_keeps_the_attention(options):
    model, x = vgg(**options), images()
    maps, vectors = model.attend(x), model.forward_head(model.forward_features(x), pre_logits=True)
    for classes in (0, 5):
        model.reset_classifier(classes)
        assert all(torch.equal(a, b) for a, b in zip(model.attend(x), maps, strict=True))
        assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), vectors)
    assert model(x).shape == (2, 5)


def test_separate_classifiers_are_named():
    model = skeleton(join="separate")
    names = model.default_cfg["classifier"]
    assert names == ("head.classifiers.0", "head.classifiers.1", "head.classifiers.2")
    assert tuple(model.get_submodule(name) for name in names) == model.get_classifier()
    assert skeleton().default_cfg["classifier"] == "head.classifiers.0"


def test_dropout_of_the_authors_code():
    rates = [m.p for path, m in skeleton(**AUTHORS).named_modules() if path.endswith(".drop") and hasattr(m, "p")]
    assert rates == [0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    assert skeleton(**AUTHORS).fc_drop.p == 0.5
    assert not any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in skeleton().modules())
    assert list(skeleton(trunk_dropout=True).state_dict()) == list(skeleton().state_dict())
    model, x = vgg(trunk_dropout=True, score="dot"), images()
    assert torch.equal(model(x), vgg(score="dot")(x))
    assert not torch.equal(model.train()(x), model(x))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"score": "dots"}, r"ltpa\(score='dots'\) does not exist; did you mean 'dot'"),
        ({"join": "both"}, r"ltpa\(join='both'\) does not exist"),
        ({"global_pool": ""}, "no pool is called ''; there are: avg, max, avgmax"),
        ({"levels": 2}, "timm cannot build 'vgg_ltpa': .*unexpected keyword argument 'levels'"),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(FoveateError, match=message) as caught, torch.device("meta"):
        fv.create_model("vgg_ltpa", **options)
    assert "\n" not in str(caught.value)


def test_sites():
    sites = [(site.name, site.channels, site.height, site.kind) for site in fv.sites(skeleton())]
    assert sites == [
        *(("block1", 64, 32, "block"), ("block2", 128, 32, "block"), ("block3", 256, 32, "block")),
        *(("block4", 512, 16, "block"), ("block5", 512, 8, "block")),
    ]


@torch.no_grad()
def test_attention_in_front_of_a_tap_changes_what_is_classified(tmp_path):
    model, x = vgg(score="dot"), images()
    before = model(x)
    fv.insert(model, "se after block3", input_size=16)
    model.eval()
    assert not torch.allclose(model(x), before)
    again = fv.load(fv.save(model, tmp_path), vgg(score="dot", num_classes=100))
    assert torch.equal(again(x), model(x))
    fv.remove(model)
    assert torch.equal(model(x), before)
