"""What detectors do with regions, counted by hand."""

from __future__ import annotations

import math

import torch
from torch import nn
from torchvision.ops import nms, ps_roi_align, roi_align

from foveate.accounting.counting.dispatch_counter import count_operations

REGIONS = torch.tensor([[0, 0.0, 0, 16, 16], [0, 4.0, 4, 40, 20]])


class Run(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


def element_ops(what):
    count = count_operations(Run(what), (8, 12, 12))[""]
    assert count.unsupported == set()
    return count.element_ops


def test_values_in_regions():
    fixed = element_ops(lambda x: roi_align(x, REGIONS, (3, 2), 0.25, sampling_ratio=2))
    assert fixed == 2 * 8 * 6 * 4 * 9  # four bilinear values for each place, 8 each, and the mean
    sharing = element_ops(lambda x: ps_roi_align(x[:, :6], REGIONS, (3, 2), 0.25, sampling_ratio=1))
    assert sharing == 2 * 1 * 6 * 9
    adaptive = element_ops(lambda x: roi_align(x, REGIONS, (3, 2), 0.25, sampling_ratio=0))
    samples = 2 * 2 + 2 * 5  # 4 x 4 of the map in 3 x 2 places: ceil(4 / 3) x ceil(4 / 2); 4 x 9: 2 x 5
    assert adaptive == samples * 8 * 6 * 9


def test_suppression_compares_all_pairs():
    boxes, scores = torch.rand(10, 4), torch.rand(10)
    found = element_ops(lambda x: nms(boxes, scores, 0.5))
    assert found == 3 * 10 + 10 * math.ceil(math.log2(10)) + 13 * 45
    assert element_ops(lambda x: x.new_zeros(3, 5).unique()) == 15 * 4
