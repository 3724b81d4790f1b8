"""Parameters and MACs of the networks that the papers compare with, as timm and torchvision build them."""

import pytest
import torch
from torchvision.models import detection

import foveate as fv

EXACT = {
    "deit_small_patch16_224": (22_050_664, "4.599G"),
    "deit_base_patch16_224": (86_567_656, "17.564G"),
    "mobilenetv1_100": (4_231_976, "568.74M"),
    "mobilenetv1_075": (2_585_560, "325.40M"),
    "mobilenetv1_050": (1_331_592, "149.50M"),
    "mobilenetv2_100": (3_504_872, "300.774M"),
    "mobilenetv2_075": (2_636_424, "209.07M"),
    "mobilenetv2_050": (1_968_680, "97.13M"),
    "torchvision:shufflenet_v2_x1_0": (2_278_604, "144.9M"),
}
UNITS = {"G": 1e9, "M": 1e6}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_to_the_unit_and_macs_to_the_digits_given(name):
    with torch.device("meta"):
        model = fv.create_model(name)
    cost = fv.cost(model)
    params, macs = EXACT[name]
    assert cost.params == params
    digits = len(macs[:-1].partition(".")[2])
    assert f"{cost.macs / UNITS[macs[-1]]:.{digits}f}" == macs[:-1]


def test_mask_rcnn():
    with torch.device("meta"):
        model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)
    assert sum(parameter.numel() for parameter in model.parameters()) == 44_400_693
