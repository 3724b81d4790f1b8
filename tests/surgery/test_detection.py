"""Backbones of torchvision's detection and segmentation networks."""

import pytest
import torch
from torch import nn
from torchvision.models import detection, segmentation

import foveate as fv

SIZE = (3, 96, 128)


def flat(output):
    return [tensor for part in (output if isinstance(output, list) else [output]) for tensor in part.values()]


def small_mask_rcnn():
    return detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=96, max_size=128, box_detections_per_img=5
    )


NETWORKS = {
    "deeplabv3": lambda: segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5),
    "mask r-cnn": small_mask_rcnn,
}
PREFIX = {"deeplabv3": "backbone.", "mask r-cnn": "backbone.body."}


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_in_the_backbone_and_out_again(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    image = torch.rand(1, *SIZE)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        before = flat(model(image))
    sites = [site for site in fv.sites(model, SIZE) if site.name.startswith(PREFIX[name])]
    last = {site.height: site for site in sites if site.kind != "stage"}
    assert len(last) >= 2
    plan = "; ".join(f"ulsam(groups=4) after {site.name}" for site in last.values())
    fv.insert(model, plan, start="identity", input_size=SIZE)
    with torch.no_grad():
        after = flat(model(image))
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    for module in fv.attentions(model).values():
        nn.init.constant_(next(module.parameters()), 1.0)
    fv.remove(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_mask_rcnn_trains_with_attention():
    torch.manual_seed(0)
    model = small_mask_rcnn()
    fv.insert(model, "ulsam(groups=4) after backbone.body.layer4", start="identity", input_size=SIZE)
    target = {
        "boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, *SIZE[1:], dtype=torch.uint8),
    }
    losses = model.train()([torch.rand(*SIZE)], [target])
    sum(losses.values()).backward()
    gates = [p.grad for name, p in model.named_parameters() if name.endswith("foveate.gate")]
    assert len(gates) == 1
    assert gates[0].isfinite()
    assert gates[0] != 0
