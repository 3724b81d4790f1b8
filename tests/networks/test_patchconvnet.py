"""PatchConvNet: its numbers, its equations, its options, and what timm's users expect of it."""

import copy
import math

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch.nn import functional as F

import foveate as fv
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.errors import FoveateError
from foveate.networks._patchconvnet_layers import Block, ClassLinear, PatchProjection
from foveate.networks._patchconvnet_weights import checkpoint_filter_fn
from foveate.networks.patchconvnet import PatchConvNet

torch.set_num_threads(1)

# name: channels, blocks, parameters, MACs at 224 px; the same with a token per class.
SIZES = {
    "patchconvnet_s60": (384, 60, 25_231_096, 3_979_469_568, 25_614_712, 5_308_019_712),
    "patchconvnet_s120": (384, 120, 47_723_896, 7_492_700_928, 48_107_512, 8_821_251_072),
    "patchconvnet_b60": (768, 60, 99_388_936, 15_803_008_512, 100_156_168, 20_816_455_680),
    "patchconvnet_b120": (768, 120, 188_611_336, 29_774_648_832, 189_378_568, 34_788_096_000),
    "patchconvnet_l60": (1024, 60, 176_009_576, 28_043_184_128, 177_032_552, 36_822_310_912),
    "patchconvnet_l120": (1024, 120, 334_294_376, 52_845_529_088, 335_317_352, 61_624_655_872),
}
OPTIONS = (
    {},
    {"tokens": "class"},
    {"heads": 4},
    {"tokens": "class", "heads": 4},
    {"global_pool": "avg"},
    {"stem": "linear"},
    {"norm": "batch"},
)


def tiny(**options):
    """The network with 32 channels and 2 blocks, whose gamma is large enough that every part matters."""
    torch.manual_seed(0)
    return PatchConvNet(**{"channels": 32, "depth": 2, "num_classes": 5, "init_values": 0.5, **options}).eval()


def skeleton(build, **options):
    with torch.device("meta"):
        return build(**options).eval()


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name):
    channels, depth, one, _, per_class, _ = SIZES[name]
    model = skeleton(timm.create_model, model_name=name)
    assert (model.num_features, len(model.blocks)) == (channels, depth)
    assert parameters(model) == one
    # A token and a classifier of its own for each of the 1000 classes: 999 tokens more.
    assert per_class == one + 999 * channels


def test_s60_counted_as_a_whole():
    model = skeleton(timm.create_model, model_name="patchconvnet_s60", tokens="class")
    assert parameters(model) == 25_614_712
    assert count_operations(model, (3, 224, 224))[""].macs == 5_308_019_712


@pytest.mark.parametrize("tokens,column", [("one", 3), ("class", 5)])
@pytest.mark.parametrize("channels", [384, 768, 1024])
def test_macs(channels, tokens, column):
    one, two = (
        count_operations(skeleton(PatchConvNet, channels=channels, depth=depth, tokens=tokens), (3, 224, 224))[""].macs
        for depth in (1, 2)
    )
    for sizes in SIZES.values():
        if sizes[0] == channels:
            assert one + (sizes[1] - 1) * (two - one) == sizes[column]


@pytest.mark.parametrize(
    "options,params,macs",
    [
        ({"global_pool": "avg"}, 23_750_776, 3_920_040_960),
        ({"stem": "linear"}, 24_654_184, 3_630_846_720),
        ({"norm": "batch"}, 25_231_096, 3_979_469_568),
        ({"heads": 8}, 25_231_096, 3_979_469_568),
    ],
)
def test_cost_of_the_ablations(options, params, macs):
    one, two = (skeleton(PatchConvNet, depth=depth, **options) for depth in (1, 2))
    counted = [(parameters(model), count_operations(model, (3, 224, 224))[""].macs) for model in (one, two)]
    assert [a + 59 * (b - a) for a, b in zip(*counted, strict=True)] == [params, macs]


def test_block_equals_its_equation():
    torch.manual_seed(0)
    block = Block(16, init_values=0.7).double()
    for parameter in block.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(2, 16, 7, 11, dtype=torch.float64, requires_grad=True)

    def gelu(z):
        return z * (1 + torch.erf(z / math.sqrt(2))) / 2

    def pointwise(layer, z):
        return torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], z) + layer.bias[:, None, None]

    centred = x - x.mean(1, keepdim=True)
    y = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
    y = y * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    y = gelu(pointwise(block.pointwise1, y))
    around, kernel = F.pad(y, (1, 1, 1, 1)), block.depthwise.weight
    y = sum(around[:, :, i : i + 7, j : j + 11] * kernel[:, 0, i, j, None, None] for i in range(3) for j in range(3))
    y = gelu(y + block.depthwise.bias[:, None, None])
    hidden = (y.mean((2, 3)) @ block.se.fc1.weight.T + block.se.fc1.bias).clamp(min=0)
    assert hidden.shape == (2, 4)
    y = y * torch.sigmoid(hidden @ block.se.fc2.weight.T + block.se.fc2.bias)[:, :, None, None]
    expected = x + block.scale.gamma[:, None, None] * pointwise(block.pointwise2, y)

    out = block(x)
    assert (out - expected).abs().max() <= 1e-12
    weights = torch.randn_like(out)
    wanted = (x, *block.parameters())
    ours = torch.autograd.grad((out * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    assert max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) <= 1e-11


def test_stem_and_head_equal_their_equations():
    model = tiny().double()
    x = torch.randn(2, 3, 48, 80, dtype=torch.float64)
    y = x
    for layer in (0, 2, 4, 6):
        y = F.conv2d(y if layer == 0 else F.gelu(y), model.stem[layer].weight, stride=2, padding=1)
    assert [model.stem[layer].out_channels for layer in (0, 2, 4, 6)] == [4, 8, 16, 32]
    torch.testing.assert_close(model.stem(x), y)
    pooled = F.layer_norm(model.pool(model.blocks(y)), (32,), model.norm.weight, model.norm.bias, 1e-6)
    torch.testing.assert_close(model(x), pooled @ model.head.weight.T + model.head.bias)


def test_average_pool_has_the_same_norm():
    model = tiny(global_pool="avg")
    x = torch.randn(2, 3, 48, 80)
    torch.testing.assert_close(model(x), model.head(model.norm(model.forward_features(x).mean((2, 3)))))


def test_linear_stem_projects_patches():
    layer = PatchProjection(3, 8).double()
    x = torch.randn(2, 3, 32, 50, dtype=torch.float64)
    out = layer(x)
    assert out.shape == (2, 8, 2, 4)
    torch.testing.assert_close(out[:, :, 1, 2], x[:, :, 16:, 32:48].flatten(1) @ layer.weight.flatten(1).T + layer.bias)
    rest = F.pad(x[:, :, :16, 48:], (0, 14)).flatten(1)
    torch.testing.assert_close(out[:, :, 0, 3], rest @ layer.weight.flatten(1).T + layer.bias)


def test_each_class_has_its_own_score():
    layer = ClassLinear(8, 5)
    x = torch.randn(2, 5, 8)
    for k in range(5):
        torch.testing.assert_close(layer(x)[:, k], x[:, k] @ layer.weight[k] + layer.bias[k])
    model = tiny(tokens="class")
    (slope,) = torch.autograd.grad(model(torch.randn(1, 3, 64, 64))[0, 2], model.pool.token)
    assert slope[2].abs().min() > 0
    assert slope[[0, 1, 3, 4]].abs().max() == 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
class TestOptions:
    """Every form of the network."""

    @torch.no_grad()
    def test_any_aspect_ratio(self, options):
        model = tiny(**options)
        x = torch.randn(2, 3, 7 * 16, 11 * 16)
        assert model.forward_features(x).shape == (2, 32, 7, 11)
        assert model(x).shape == (2, 5)
        # A rest of a patch counts as one, whichever the stem.
        assert model.forward_features(x[:, :, :33, :17]).shape == (2, 32, 3, 2)
        assert model(x[:, :, :1, :5]).isfinite().all()

    @torch.no_grad()
    def test_images_do_not_see_each_other(self, options):
        model = tiny(**options).double()
        x = torch.randn(3, 3, 48, 32, dtype=torch.float64)
        whole = model(x)
        torch.testing.assert_close(whole, torch.cat([model(image[None]) for image in x]), rtol=1e-12, atol=1e-12)
        assert (whole[0] - whole[1]).abs().max() > 1e-6

    def test_every_parameter_learns(self, options):
        model = tiny(**options).train()
        model(torch.randn(2, 3, 64, 48)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    @torch.no_grad()
    def test_memory_formats_and_precisions(self, options):
        model = tiny(**options)
        x = torch.randn(2, 3, 64, 48)
        expected = model(x)
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        x_last = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(other(x_last), expected, rtol=1e-4, atol=1e-5)
        assert other.forward_features(x_last).is_contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(x) - expected).abs().max() < 0.1
        assert (model.bfloat16()(x.bfloat16()).float() - expected).abs().max() < 0.1


@pytest.mark.parametrize("options", [{"stem": "linear"}, {"tokens": "class", "norm": "batch"}], ids=str)
@torch.no_grad()
def test_export_with_any_batch(options):
    model, x = tiny(**options, depth=1), torch.randn(3, 3, 32, 48)
    batch = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=batch)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options,shape",
    [
        ({}, (2, 1, 7, 11)),
        ({"heads": 4}, (2, 4, 7, 11)),
        ({"tokens": "class"}, (2, 5, 7, 11)),
        ({"tokens": "class", "heads": 4}, (2, 5, 4, 7, 11)),
    ],
)
@torch.no_grad()
def test_the_pools_map(options, shape):
    model = tiny(**options)
    maps = model.pool.attend(model.forward_features(torch.randn(2, 3, 7 * 16, 11 * 16)))
    assert maps.shape == shape
    total = maps.sum((-2, -1))
    if "tokens" in options:
        torch.testing.assert_close(total, torch.ones_like(total))
    else:  # the token attends to itself, too
        assert (total < 1).all()


class TestClassifier:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @torch.no_grad()
    def test_another_number_of_classes(self, options):
        model = tiny(**options).double()
        before = copy.deepcopy(model.state_dict())
        x = torch.randn(2, 3, 64, 48, dtype=torch.float64)
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)
        assert model.num_classes == 7
        fresh = {"head.weight", "head.bias", *({"pool.token"} if "tokens" in options else ())}
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert {key for key in after if not torch.equal(after[key], before[key])} == fresh
        assert {tensor.dtype for tensor in after.values() if tensor.is_floating_point()} == {torch.float64}
        model.reset_classifier(0)
        assert model(x).shape == ((2, 7, 32) if "tokens" in options else (2, 32))
        torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x), pre_logits=True))

    def test_two_classes_and_many(self):
        for classes in (1, 2, 1003):
            assert tiny(tokens="class", num_classes=classes)(torch.rand(1, 3, 16, 16)).shape == (1, classes)

    @torch.no_grad()
    def test_another_pool(self):
        model, x = tiny(), torch.randn(2, 3, 64, 48)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), model.forward_features(x))
        model.reset_classifier(3, "avg")
        assert model(x).shape == (2, 3)
        model.reset_classifier(4, "attention")
        assert model(x).shape == (2, 4)
        assert parameters(model) == parameters(tiny(num_classes=4))

    @pytest.mark.parametrize(
        "request_,message",
        [
            ((3, "average"), r"global_pool='average'\) does not exist; did you mean 'avg'"),
            ((3, ""), "ask for num_classes=0, or for a pool"),
            ((3, "avg"), "goes with global_pool='attention'"),
        ],
    )
    def test_a_refusal_changes_nothing(self, request_, message):
        model = tiny(tokens="class")
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(FoveateError, match=message):
            model.reset_classifier(*request_)
        assert (model.num_classes, model.global_pool) == (5, "attention")
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "options,message",
    [
        ({"stem": "convolutional"}, r"patchconvnet\(stem='convolutional'\) does not exist; did you mean 'convolution'"),
        ({"norm": "group"}, r"norm='group'\) does not exist; there are: layer, batch"),
        ({"tokens": "classes"}, "did you mean 'class'"),
        ({"global_pool": "token"}, "there are: attention, avg"),
        ({"global_pool": ""}, "ask for num_classes=0"),
        ({"tokens": "class", "num_classes": 0}, "num_classes is at least 1"),
        ({"tokens": "class", "global_pool": "avg"}, "goes with global_pool='attention'"),
        ({"heads": 5}, "does not fit 32 channels"),
        ({"channels": 36}, "a multiple of 8"),
        ({"depth": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(FoveateError, match=message) as caught:
        tiny(**options)
    assert "\n" not in str(caught.value)


def test_options_reach_the_network_by_name():
    model = timm.create_model("patchconvnet_s60", depth=1, num_classes=3, tokens="class", heads=2, norm="batch")
    assert (model.pool.classes, model.pool.heads) == (3, 2)
    assert isinstance(model.blocks[0].norm, torch.nn.BatchNorm2d)
    assert model.default_cfg["architecture"] == "patchconvnet_s60"
    with pytest.raises(FoveateError, match="timm cannot build 'patchconvnet_s60': .*pooling"):
        fv.create_model("patchconvnet_s60", pooling="avg")


@pytest.mark.parametrize("name,gamma", [("patchconvnet_s60", 1e-4), ("patchconvnet_s120", 1e-6)])
def test_gamma_at_the_start(name, gamma):
    model = timm.create_model(name, depth=1)
    for parameter in (model.blocks[0].scale.gamma, model.pool.gamma_1, model.pool.gamma_2):
        assert torch.equal(parameter, torch.full((384,), gamma))


@torch.no_grad()
def test_drop_path():
    model, x = tiny(drop_path_rate=0.5, depth=3), torch.randn(64, 3, 16, 16)
    assert [block.drop_path.drop_prob for block in model.blocks] == [0.5, 0.5, 0.5]
    assert torch.equal(model(x), tiny(depth=3)(x))
    block = model.train().blocks[0]
    features = model.stem(x)
    change = (block(features) - features).abs().amax((1, 2, 3))
    assert 16 < (change == 0).sum() < 48  # images that skipped the block


@torch.no_grad()
def test_features():
    model, x = tiny(depth=5), torch.randn(2, 3, 64, 48)
    last, every = model.forward_intermediates(x)
    assert len(every) == 5
    assert torch.equal(every[-1], last)
    assert torch.equal(last, model.forward_features(x))
    chosen = model.forward_intermediates(x, [0, -2], stop_early=True, intermediates_only=True)
    assert all(torch.equal(one, every[i]) for one, i in zip(chosen, (0, 3), strict=True))
    with pytest.raises(FoveateError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("depth,taps", [(60, [14, 29, 44, 59]), (3, [0, 1, 2]), (1, [0])])
def test_features_only_taps_each_quarter(depth, taps):
    net = skeleton(timm.create_model, model_name="patchconvnet_s60", depth=depth, features_only=True)
    assert net.feature_info.module_name() == [f"blocks.{tap}" for tap in taps]
    assert net.feature_info.channels() == [384] * len(taps)
    assert net.feature_info.reduction() == [16] * len(taps)
    assert not any("pool" in name or "head" in name for name, _ in net.named_parameters())


def test_gradient_checkpointing_changes_nothing():
    model, x = tiny(), torch.randn(2, 3, 64, 48)
    plain = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    again = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_tokens_are_spared_from_weight_decay():
    model = tiny(tokens="class")
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    spared = next(
        g
        for g in param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
        if not g["weight_decay"]
    )
    assert any(parameter is model.pool.token for parameter in spared["params"])


@torch.no_grad()
def test_attention_goes_into_it():
    model, x = tiny(), torch.randn(2, 3, 64, 48)
    before, listed = model(x), fv.sites(model, (3, 64, 48))
    assert [(site.name, site.kind, site.channels, site.height, site.width) for site in listed] == [
        ("blocks", "stage", 32, 4, 3),
        ("blocks.0", "block", 32, 4, 3),
        ("blocks.1", "block", 32, 4, 3),
    ]
    fv.insert(model, "ulsam(groups=4) after blocks.0; ulsam(groups=4) replacing blocks.1", input_size=(3, 64, 48))
    assert (model(x) - before).abs().max() > 1e-6
    assert len(fv.attentions(model)) == 2
    fv.remove(model)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("tokens", ["one", "class"])
def test_the_authors_weights_fit(tokens):
    model = tiny(depth=1, tokens=tokens)
    ours = model.state_dict()
    theirs = {f"patch_embed.proj.{i}.0.weight": f"stem.{i}.weight" for i in (0, 2, 4, 6)}
    theirs |= {"cls_token": "pool.token", "blocks.0.gamma_1": "blocks.0.scale.gamma"}
    theirs |= {f"blocks_token_only.0.gamma_{i}": f"pool.gamma_{i}" for i in (1, 2)}
    layers = {"norm": "norm", "blocks.0.norm1": "blocks.0.norm"}
    convolutions = {
        0: "pointwise1",
        2: "depthwise",
        5: "pointwise2",
        "4.conv_reduce": "se.fc1",
        "4.conv_expand": "se.fc2",
    }
    layers |= {f"blocks.0.attn.qkv_pos.{i}": f"blocks.0.{layer}" for i, layer in convolutions.items()}
    attention = {"attn.q": "query", "attn.k": "key", "attn.v": "value", "attn.proj": "proj", "norm1": "norm1"}
    attention |= {"norm2": "norm2", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
    layers |= {f"blocks_token_only.0.{layer}": f"pool.{own}" for layer, own in attention.items()}
    layers |= {"head": "head"} if tokens == "one" else {}
    theirs |= {f"{layer}.{part}": f"{own}.{part}" for layer, own in layers.items() for part in ("weight", "bias")}
    state = {name: ours[own] for name, own in theirs.items()}
    state["cls_token"] = ours["pool.token"].reshape(1, -1, 32)
    for layer in ("4.conv_reduce", "4.conv_expand"):
        state[f"blocks.0.attn.qkv_pos.{layer}.weight"] = state[f"blocks.0.attn.qkv_pos.{layer}.weight"][..., None, None]
    if tokens == "class":
        for k in range(5):
            state |= {
                f"head.{k}.weight": ours["head.weight"][k : k + 1],
                f"head.{k}.bias": ours["head.bias"][k : k + 1],
            }
    found = checkpoint_filter_fn({"model": state}, model)
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in ours.items())
    assert all(torch.equal(tensor, ours[name]) for name, tensor in checkpoint_filter_fn(ours, model).items())
    if tokens == "class":  # tokens of other classes are of no use
        assert "pool.token" not in checkpoint_filter_fn({"model": state}, tiny(depth=1, tokens="class", num_classes=4))
