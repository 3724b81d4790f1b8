"""A trunk and a head: sizes, modes, taps, attention in the trunk, copies, export, errors."""

import copy

import pytest
import timm
import torch
from torch import nn

import foveate as fv
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.dense import Segmenter
from foveate.errors import FoveateError

HEADS = {"danet": "danet", "upernet": "upernet(width=16, aux_width=8)"}
AUXILIARY = {"danet": {"position", "channel"}, "upernet": {"aux"}}


def near(found, expected, bound):
    """Within a share of the largest score."""
    return bool((found - expected).abs().max() <= bound * expected.abs().max())


@pytest.fixture(params=["features only", "whole", "column"])
def trunk(request, make_trunk):
    return make_trunk(request.param)


@pytest.fixture(params=HEADS)
def head(request):
    return request.param


@pytest.fixture
def segmenter(trunk, head):
    torch.manual_seed(0)
    return Segmenter(trunk, HEADS[head], classes=4).eval()


@pytest.mark.parametrize("height, width", [(64, 64), (33, 71), (47, 18), (7, 11)])
def test_scores_have_the_size_of_the_image(segmenter, head, height, width):
    x = torch.randn(2, 3, height, width)
    out = segmenter(x)
    assert set(out) == {"out"}
    assert out["out"].shape == (2, 4, height, width)
    assert out["out"].isfinite().all()
    trained = segmenter.train()(torch.randn(2, 3, height + 32, width + 32))
    assert set(trained) == {"out"} | AUXILIARY[head]
    assert {score.shape for score in trained.values()} == {(2, 4, height + 32, width + 32)}


def test_an_image_does_not_see_the_others(segmenter):
    x = torch.randn(3, 3, 40, 56)
    together = segmenter(x)["out"]
    alone = torch.cat([segmenter(image[None])["out"] for image in x])
    assert near(together, alone, 1e-5)


def test_gradients(segmenter):
    segmenter.train()
    for module in segmenter.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # else a bias in front of one has no gradient
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    with torch.no_grad():
        for key, parameter in segmenter.decoder.named_parameters():
            if "gamma" in key:
                parameter.fill_(0.5)
    x = torch.randn(2, 3, 64, 96, requires_grad=True)
    sum(score.square().sum() for score in segmenter(x).values()).backward()
    assert x.grad.abs().sum() > 0
    for key, parameter in segmenter.decoder.named_parameters():
        # A key's bias moves all scores of a softmax alike.
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0 or key == "head.sa.key_conv.bias", key
    assert all(p.grad is not None for p in next(segmenter.backbone.children()).parameters())


def test_whole_and_features_only_agree(make_trunk, head):
    whole = Segmenter(make_trunk("whole"), HEADS[head], classes=4).eval()
    listed = Segmenter(make_trunk("features only"), HEADS[head], classes=4).eval()
    listed.backbone.load_state_dict(whole.backbone.state_dict(), strict=False)
    listed.decoder.load_state_dict(whole.decoder.state_dict())
    x = torch.randn(1, 3, 45, 70)
    assert near(whole(x)["out"], listed(x)["out"], 1e-6)


def test_output_is_that_of_the_head_enlarged(make_trunk):
    segmenter = Segmenter(make_trunk("whole"), "danet", classes=4).eval()
    x = torch.randn(1, 3, 64, 96)
    last = segmenter.backbone.forward_intermediates(x, intermediates_only=True)[-1]
    scores = segmenter.decoder.head(last)[0]
    enlarged = nn.functional.interpolate(scores, (64, 96), mode="bilinear", align_corners=False)
    assert torch.equal(segmenter(x)["out"], enlarged)


def test_copies_and_weights(segmenter):
    x = torch.randn(1, 3, 40, 56)
    copied = copy.deepcopy(segmenter)
    assert torch.equal(copied(x)["out"], segmenter(x)["out"])
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not torch.equal(copied(x)["out"], segmenter(x)["out"])
    copied.load_state_dict(segmenter.state_dict())
    assert torch.equal(copied(x)["out"], segmenter(x)["out"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(segmenter, dtype):
    x = torch.randn(1, 3, 40, 56)
    out = copy.deepcopy(segmenter).to(dtype)(x.to(dtype))["out"]
    assert out.dtype == dtype
    assert near(out.float(), segmenter(x)["out"], 1e-5 if dtype == torch.float64 else 0.1)


def test_channels_last(segmenter):
    x = torch.randn(2, 3, 40, 56)
    wide = copy.deepcopy(segmenter).to(memory_format=torch.channels_last)
    assert near(wide(x.to(memory_format=torch.channels_last))["out"], segmenter(x)["out"], 1e-5)


@pytest.mark.parametrize("kind, head", [("column", "danet"), ("column", "upernet"), ("whole", "upernet")])
def test_export(make_trunk, kind, head):
    segmenter = Segmenter(make_trunk(kind), HEADS[head], classes=4).eval()
    x = torch.randn(2, 3, 64, 96)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(segmenter, (x,), dynamic_shapes=({0: batch},))
    more = torch.randn(3, 3, 64, 96)
    assert near(program.module()(more)["out"], segmenter(more)["out"], 1e-5)


@pytest.mark.parametrize("head", ["danet", "upernet"])
def test_compile_in_one_graph(column, head):
    segmenter = Segmenter(column(4), HEADS[head], classes=4).eval()
    x = torch.randn(1, 3, 40, 56)
    compiled = torch.compile(segmenter, fullgraph=True, backend="aot_eager")
    assert near(compiled(x)["out"], segmenter(x)["out"], 1e-5)


@pytest.mark.parametrize(
    "kind, site", [("whole", "blocks.3.1"), ("column", "blocks.2"), ("features only", "blocks.3.1")]
)
def test_attention_goes_into_the_backbone(make_trunk, kind, site, head):
    segmenter = Segmenter(make_trunk(kind), HEADS[head], classes=4).eval()
    x = torch.randn(1, 3, 64, 96)
    before = segmenter(x)["out"]
    keys = list(segmenter.state_dict())
    fv.insert(segmenter, f"se after backbone.{site}")
    assert not torch.equal(segmenter(x)["out"], before)
    fv.remove(segmenter)
    assert torch.equal(segmenter(x)["out"], before)
    assert list(segmenter.state_dict()) == keys


def test_attention_goes_into_a_listed_backbone_alone(make_trunk):
    segmenter = Segmenter(make_trunk("features only"), "danet", classes=4).eval()
    x = torch.randn(1, 3, 64, 96)
    before = segmenter(x)["out"]
    fv.insert(segmenter.backbone, "se after blocks.4.1")
    assert not torch.equal(segmenter(x)["out"], before)


def test_a_network_that_carries_attention_becomes_a_backbone(make_trunk):
    network = fv.insert(make_trunk("whole"), "ulsam(groups=4) replacing blocks.3.1")
    segmenter = Segmenter(network, "danet", classes=4).eval()
    assert segmenter(torch.randn(1, 3, 64, 96))["out"].shape == (1, 4, 64, 96)
    assert "blocks.3.1" in fv.attentions(network)


def test_cost_of_attention_in_a_segmenter(make_trunk):
    segmenter = fv.insert(Segmenter(make_trunk("whole"), "danet", classes=4), "se after backbone.blocks.3.1")
    attention = fv.attentions(segmenter)["backbone.blocks.3.1"]
    cost = fv.cost(segmenter)
    assert (cost - cost.baseline).params == sum(p.numel() for p in attention.parameters()) > 0


NETWORKS = [
    "resnet50",
    "vgg11",
    "convnext_atto",
    "regnetx_002",
    "densenet121",
    "ghostnet_100",
    "repvgg_a0",
    "xception41",
]


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_timms_networks(name, features_only):
    # A RegNet computes its widths with an operation that torch 2.9 lacks without data.
    with torch.device("cpu" if "regnet" in name else "meta"):
        backbone = timm.create_model(name, features_only=features_only)
    with torch.device("meta"):
        segmenter = Segmenter(backbone.to("meta"), classes=4).eval()
        assert segmenter(torch.zeros(1, 3, 97, 131))["out"].shape == (1, 4, 97, 131)
    assert segmenter.taps.strides == (4, 8, 16, 32)


def test_dilated():
    with torch.device("meta"):
        backbone = timm.create_model("resnet50", features_only=True, output_stride=8)
        segmenter = Segmenter(backbone, "danet", classes=150).eval()
    assert segmenter.taps.strides == (8,)
    counted = count_operations(segmenter, (3, 512, 512))
    assert counted["decoder"].macs == 110_733_819_904
    assert sum(p.numel() for p in segmenter.parameters()) == 23_508_032 + 24_156_228


def test_taps(column, make_trunk):
    def chosen(depth, head="upernet(width=8)", taps=None):
        return Segmenter(column(depth), head, classes=2, taps=taps).taps.indices

    assert chosen(12) == (3, 5, 7, 11)
    assert chosen(24) == (7, 11, 15, 23)
    assert chosen(60) == (19, 29, 39, 59)
    assert chosen(12, "danet") == (11,)
    assert chosen(4) == (0, 1, 2, 3)
    assert chosen(12, taps=(2, 5, 8, -1)) == (2, 5, 8, 11)
    segmenter = Segmenter(make_trunk("features only"), "danet", classes=2, taps=[-2]).eval()
    assert segmenter.taps.channels == (32,)
    assert segmenter(torch.randn(1, 3, 32, 32))["out"].shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"head": "upernett"}, "did you mean 'upernet'"),
        ({"head": "danet(from='nearest')"}, "no option 'from'; did you mean 'form'"),
        ({"head": "danet(channels=3)"}, "no option 'channels'"),
        ({"head": "danet(form='x')"}, "channel\\(form='x'\\) does not exist"),
        ({"head": "upernet(dropout=2.0)"}, "upernet\\(dropout=2.0\\) cannot be built: .*probability"),
        ({"head": "upernet(width='a')"}, "upernet\\(width='a'\\) cannot be built"),
        ({"classes": 0}, "classes=0"),
        ({"classes": True}, "classes=True"),
        ({"taps": (0, 1, 2)}, "reads 4"),
        ({"taps": (0, 1, 2, 2)}, "4 different"),
        ({"taps": (0, 1, 2, 6)}, "feature maps 0 to 5"),
        ({"taps": (0, 1, 2, 3.0)}, "feature maps 0 to 5"),
        ({"taps": (0, 1, 3, 2)}, "in their order"),
    ],
)
def test_requests_that_cannot_be_met(column, kwargs, words):
    with pytest.raises(FoveateError, match=words) as caught:
        Segmenter(column(), **{"classes": 3, **kwargs})
    assert "\n" not in str(caught.value)


def test_backbones_that_cannot_be_read(column):
    with pytest.raises(FoveateError, match="not a str"):
        Segmenter("resnet50", classes=3)
    with pytest.raises(FoveateError, match="Sequential does not; make it with"):
        Segmenter(nn.Sequential(nn.Conv2d(3, 4, 3)), classes=3)
    with pytest.raises(FoveateError, match="reads 4 feature maps, and Column gives 3"):
        Segmenter(column(3), classes=3)
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224", features_only=True)
        xcit = timm.create_model("xcit_nano_12_p16_224", features_only=True)
    with pytest.raises(FoveateError, match="without features_only"):
        Segmenter(swin, classes=3)
    with pytest.raises(FoveateError, match="out_indices"):
        Segmenter(xcit, classes=3)
