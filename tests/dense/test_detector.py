"""Detectors: built, run, trained, kept and rebuilt; counted without an image; against torchvision's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

import foveate as fv
from foveate.dense import Detector, create_detector
from foveate.dense.detection import without_data
from foveate.dense.detection.batch import PaddedImages
from foveate.errors import FoveateError
from foveate.surgery.insert import insert, plan_of
from foveate.surgery.saving.checkpoint import load, save

HEADS = {
    "faster_rcnn": "faster_rcnn(width=8, hidden=16, anchor=8, proposals=50, detections=7)",
    "mask_rcnn": "mask_rcnn(width=8, hidden=16, anchor=8, detections=3)",
    "ssdlite": "ssdlite(width=0.1, detections=9)",
}
TARGETS = [
    {"boxes": torch.tensor([[1.0, 2, 20, 20]]), "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 80).byte()},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": torch.zeros(0, 64, 80).byte()},
]


def small(head, **options):
    torch.manual_seed(0)
    return create_detector("test_efficientnet", HEADS[head], classes=["a", "b", "c"], **options)


def changed(model):
    """Other weights and statistics than those of a new network."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else 0.1 * torch.randn_like(tensor))
    return model.eval()


@pytest.mark.parametrize("head", HEADS)
def test_runs_trains_and_is_rebuilt_without_its_module(head, tmp_path):
    model = insert(small(head), "se after backbone.blocks.2.0", input_size=64)
    images = torch.randn(2, 3, 64, 80)
    losses = model.train()(images, TARGETS)
    assert ("loss_mask" in losses) == (head == "mask_rcnn") == model.with_masks
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    gate = [p.grad for name, p in model.named_parameters() if "foveate" in name]
    assert gate
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in gate)
    with pytest.raises(FoveateError, match="training mode needs targets"):
        model(images)

    changed(model)
    with torch.no_grad():
        found = model(images)
    assert len(found) == 2
    for one in found:
        assert one["boxes"].shape == (len(one["scores"]), 4)
        assert len(one["boxes"]) <= {"faster_rcnn": 7, "mask_rcnn": 3, "ssdlite": 9}[head]
        assert set(one["labels"].tolist()) <= {0, 1, 2}
        assert bool((one["scores"].diff() <= 0).all())
        if len(one["boxes"]):
            assert one["boxes"].min() >= 0
            assert one["boxes"][:, 2::2].max() <= 80
        assert ("masks" in one) == model.with_masks
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, Detector)
    assert str(plan_of(loaded)) == "se after backbone.blocks.2.0"
    assert loaded.pretrained_cfg["label_names"] == ("a", "b", "c")
    with torch.no_grad():
        for one, other in zip(loaded(images), found, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in other)


def test_what_a_batch_is_filled_up_with_changes_nothing_of_a_smaller_image():
    small_one, large = torch.randn(3, 32, 32), torch.randn(3, 64, 96)
    batch = PaddedImages.of([small_one, large], 32)
    assert batch.tensors.shape == (2, 3, 64, 96)
    assert batch.image_sizes == [(32, 32), (64, 96)]
    assert batch.tensors[0, :, 32:].abs().sum() == batch.tensors[0, :, :, 32:].abs().sum() == 0
    model = changed(small("faster_rcnn"))
    with torch.no_grad():
        alone, beside = model(large[None])[0], model([small_one, large])[1]
        assert model([small_one, large])[0]["boxes"].amax() <= 32
    assert all(torch.allclose(alone[key], beside[key], atol=1e-4) for key in alone)
    for given, words in ((torch.zeros(3, 8, 8), "images .B"), ([], "one image or more")):
        with pytest.raises(FoveateError, match=words):
            model(given)


@pytest.mark.parametrize("head", HEADS)
def test_a_first_image_that_was_filled_up_changes_nothing_of_later_ones(head):
    """torchvision's RoI align keeps the strides that it guesses from the first."""
    fresh, used, image = changed(small(head)), small(head), torch.randn(1, 3, 64, 64)
    used.load_state_dict(fresh.state_dict())
    with torch.no_grad():
        used.eval()(torch.randn(1, 3, 33, 33))
        expected, found = fresh(image)[0], used(image)[0]
    assert len(expected["boxes"])
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("head", HEADS)
def test_costs_are_those_of_any_image_and_nothing_is_unsupported(head):
    costs = [fv.cost(change(small(head)), 64) for change in (nn.Module.eval, changed)]
    assert costs[0] == costs[1]
    assert costs[0].unsupported == ()
    assert costs[0].activation_bytes_training > 0
    assert [row.macs for row in costs[0].modules] == [row.macs for row in costs[1].modules]
    assert len(fv.sites(small(head), 64)) > 3


def test_regions_are_counted_by_their_formulas():
    """Of 50 proposals each passes two layers; the pyramid and the trunk come from the network without proposals."""
    few, many = (
        fv.cost(
            create_detector(
                "test_efficientnet", f"faster_rcnn(width=8, hidden=16, anchor=8, proposals={n})", classes=3
            ),
            64,
        )
        for n in (10, 50)
    )
    each = 8 * 49 * 16 + 16 * 16 + 16 * 4 + 16 * 16  # two layers; 4 scores; 4 boxes of 4 numbers
    assert many.macs - few.macs == 40 * each
    aligned = 40 * 8 * 49 * 9 * 4  # four bilinear values for each of 7 x 7 places, and their mean
    pairs = 13 * (50 * 49 - 10 * 9) // 2
    assert many.element_ops - few.element_ops > aligned + pairs
    assert few.params == many.params


def test_torchvisions_own_network_has_the_same_parameters_and_no_unsupported_operation():
    with torch.device("meta"):
        ours = create_detector("resnet50", "mask_rcnn", classes=80)
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81, norm_layer=nn.BatchNorm2d)
    assert sum(p.numel() for p in ours.parameters()) == 44_400_693
    assert sum(p.numel() for p in theirs.parameters()) == 44_400_693
    torch.manual_seed(0)
    few = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, rpn_post_nms_top_n_test=20, box_detections_per_img=3
    )
    few.transform.min_size, few.transform.max_size = (64,), 64
    assert fv.cost(few, 64).unsupported == ()


def test_columns_are_rescaled_and_slips_are_refused(column):
    model = Detector(column(), HEADS["faster_rcnn"], classes=2).eval()
    with torch.no_grad():
        assert len(model(torch.randn(1, 3, 64, 64))) == 1
    slips = [
        ({"head": "faster_rcn"}, "no detection head is called 'faster_rcn'.*'faster_rcnn'"),
        ({"head": "faster_rcnn(widht=3)"}, "no option 'widht'.*'width'"),
        ({"head": "faster_rcnn(width=0)"}, "width=0"),
        ({"head": "faster_rcnn(threshold=1.0)"}, "threshold=1.0"),
        ({"head": "ssdlite(width=-1)"}, "width=-1"),
        ({"head": "ssdlite(detections=0)"}, "detections=0"),
        ({"classes": 0}, "1 class or more"),
        ({"classes": "cat"}, "give a number, or a list of names"),
        ({"taps": (0, 1, 2)}, "reads 4 different feature maps"),
    ]
    for changes, words in slips:
        with pytest.raises(FoveateError, match=words):
            create_detector("test_efficientnet", **{"classes": 3, **changes})
    with pytest.raises(FoveateError, match="the trunk of a detector"):
        create_detector("torchvision:resnet18", classes=3)
    with pytest.raises(FoveateError, match="pretrained is for a trunk that is built by name"):
        create_detector(column(), classes=3, pretrained=True)


def test_a_torch_that_cannot_count_suppression_is_named(monkeypatch):
    monkeypatch.setattr(without_data, "_missing", "torch 9 does not register the operation that counts it: no")
    with pytest.raises(FoveateError, match="regions of a detector cannot be counted: torch 9"):
        without_data.suppress(torch.empty(3, 4, device="meta"), torch.empty(3, device="meta"), 0.5)
