"""Segmenters by name: built, kept, rebuilt; LR-ASPP by its equations."""

import pytest
import timm
import torch
from torch.nn import functional as F

from foveate.dense import Segmenter, create_segmenter
from foveate.dense.lraspp import LRASPPDecoder
from foveate.errors import FoveateError
from foveate.surgery.insert import insert, plan_of
from foveate.surgery.saving.checkpoint import load, save


def test_lraspp_by_its_equations(randomise, agree):
    head = randomise(LRASPPDecoder([6, 10], [8, 16], 4, width=5))
    low, high = (torch.randn(2, c, *s, dtype=torch.float64, requires_grad=True) for c, s in ((6, (8, 9)), (10, (4, 5))))
    p = dict(head.head.named_parameters()) | dict(head.head.named_buffers())
    mixed = torch.einsum("dc,bchw->bdhw", p["cbr.0.weight"][..., 0, 0], high)
    scale = p["cbr.1.weight"] / (p["cbr.1.running_var"] + head.head.cbr[1].eps).sqrt()
    mixed = (mixed - p["cbr.1.running_mean"][:, None, None]) * scale[:, None, None] + p["cbr.1.bias"][:, None, None]
    gate = torch.sigmoid(high.mean((2, 3)) @ p["scale.1.weight"][..., 0, 0].T)
    up = F.interpolate(mixed.relu() * gate[..., None, None], (8, 9), mode="bilinear", align_corners=False)
    expected = F.conv2d(low, p["low_classifier.weight"], p["low_classifier.bias"])
    expected = expected + F.conv2d(up, p["high_classifier.weight"], p["high_classifier.bias"])
    agree(head, [low, high], head([low, high])["out"], expected)


@pytest.mark.parametrize(
    "trunk, head, options, strides",
    [
        ("test_efficientnet", "lraspp(width=8)", {}, (8, 32)),
        ("test_efficientnet", "lraspp(width=8)", {"output_stride": 16, "in_chans": 1}, (8, 16)),
        ("test_resnet", "upernet(width=8, aux_width=8)", {"taps": (0, 1, 2, 3)}, (2, 4, 8, 16)),
        ("test_resnet", "danet(form='farthest')", {}, (32,)),
    ],
)
def test_rebuilt_without_its_module(trunk, head, options, strides, tmp_path):
    torch.manual_seed(0)
    model = create_segmenter(trunk, head, classes=["a", "b", "c"], **options)
    assert model.taps.strides == strides
    insert(
        model, "se after backbone.conv1" if trunk == "test_resnet" else "se after backbone.blocks.1.0", input_size=64
    )
    channels = options.get("in_chans", 3)
    outputs = model.train()(torch.randn(2, channels, 64, 64))
    sum(scores.mean() for scores in outputs.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []  # nothing lies behind the last map
    save(model, tmp_path)
    loaded = load(tmp_path)
    x = torch.randn(1, channels, 64, 80)
    assert type(loaded) is Segmenter
    assert str(plan_of(loaded)) == str(plan_of(model))
    assert torch.equal(loaded(x)["out"], model.eval()(x)["out"])
    assert tuple(loaded.pretrained_cfg["label_names"]) == ("a", "b", "c")


def test_a_trunk_that_is_given_is_left_whole(tmp_path):
    trunk = timm.create_model("test_efficientnet", num_classes=5)
    keys = set(trunk.state_dict())
    model = create_segmenter(trunk, "lraspp(width=8)", classes=3)
    assert set(trunk.state_dict()) == keys
    save(model, tmp_path)
    with pytest.raises(FoveateError, match=r"load\(folder, model\)"):
        load(tmp_path)
    other = create_segmenter(timm.create_model("test_efficientnet", num_classes=5), "lraspp(width=8)", classes=3)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(load(tmp_path, other)(x)["out"], model.eval()(x)["out"])


def test_refused():
    for arguments, match in [
        ({"classes": "abc"}, "a number, or a list of names"),
        ({"head": "lrasp", "classes": 3}, "lraspp"),
        ({"head": "lraspp(width=0)", "classes": 3}, "width=0"),
        ({"trunk": "test_efficientne", "classes": 3}, "test_efficientnet"),
        ({"trunk": "torchvision:resnet18", "classes": 3}, "timm"),
        ({"trunk": timm.create_model("test_efficientnet"), "classes": 3, "output_stride": 16}, "output_stride"),
    ]:
        with pytest.raises(FoveateError, match=match):
            create_segmenter(**{"trunk": "test_efficientnet", **arguments})
