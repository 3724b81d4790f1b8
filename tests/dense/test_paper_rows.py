"""The rows of the table of segmentation: UperNet, 150 classes, parameters to the unit and MACs at 512 x 2048."""

import pytest
import timm
import torch

import foveate as fv
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.dense import Segmenter

# The whole network with its classifier and the auxiliary head; MACs without them.
PATCHCONVNET = [
    ("patchconvnet_s60", 57_113_508, 951_162_863_616),
    ("patchconvnet_b60", 140_612_148, 1_256_478_867_456),
    ("patchconvnet_b120", 229_834_548, 1_548_105_547_776),
    ("patchconvnet_l120", 383_710_868, 2_083_416_702_976),
]
# Without what stands behind the trunk: as the others of the same table are counted, in millions.
OTHERS = [
    ("resnet50", (1, 2, 3, 4), 66_496_876, 66.5),
    ("xcit_tiny_12_p16_224", (3, 5, 7, 11), 34_171_316, 34.2),
    ("xcit_small_12_p16_224", (3, 5, 7, 11), 54_199_100, 54.2),
    ("xcit_medium_24_p16_224", (7, 11, 15, 23), 112_177_196, 112.2),
    ("xcit_medium_24_p8_224", (7, 11, 15, 23), 110_005_868, 110.0),
]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name, params, macs", PATCHCONVNET)
def test_patchconvnet(name, params, macs):
    with torch.device("meta"):
        segmenter = Segmenter(fv.create_model(name), "upernet", classes=150).eval()
    assert parameters(segmenter) == params
    assert count_operations(segmenter, (3, 512, 2048))[""].macs == macs


@pytest.mark.parametrize("name, taps, params, printed", OTHERS)
def test_others(name, taps, params, printed):
    with torch.device("meta"):
        backbone = timm.create_model(name, features_only=True, out_indices=taps)
        segmenter = Segmenter(backbone, "upernet", classes=150)
    assert parameters(segmenter) == params
    assert round(params / 1e6, 1) == printed
