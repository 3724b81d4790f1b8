"""MACs of small networks of timm, against torch's own counter on the network itself, with data.

torch's counter takes attention for its matrix products: of the CPU's fused kernel it knows nothing before torch 2.15.
"""

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv

# Plain, inverted, scaled weights, halo and self-attention, transformer, and what a mechanism of ours adds.
NAMES = (
    *("test_resnet", "test_efficientnet", "test_convnext", "test_nfnet", "test_vit", "mobilenetv3_small_050"),
    *("lcnet_035", "regnetx_002"),
)


@pytest.mark.parametrize("name", NAMES)
def test_macs_are_half_of_what_torch_counts(name):
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *size))
    cost = fv.cost(model)
    assert 2 * cost.macs == counter.get_total_flops() > 0
    assert cost.unsupported == ()
    assert {row.name: 2 * row.macs for row in cost.modules if row.macs} == _by_module(counter, type(model).__name__)


def _by_module(counter, whole):
    """torch's own attribution to modules, by our names."""
    found = {name.removeprefix(whole).lstrip("."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    found.pop("Global")
    return found
