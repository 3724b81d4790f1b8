"""Adaptive pooling as a product of matrices: the same numbers, and a file for any size."""

import pytest
import torch
from torch import nn

import foveate as fv
from foveate.exporters.formats._average_pool import MatrixPool, with_matrix_pools


@pytest.mark.parametrize("bins", [(1, 1), (2, 3), (6, 6), (7, 2)])
@pytest.mark.parametrize("size", [(1, 1), (5, 8), (6, 13), (12, 18)])
def test_the_same_numbers(bins, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(MatrixPool(*bins)(x), nn.AdaptiveAvgPool2d(bins)(x), atol=1e-12)


def test_only_pools_to_several_positions_are_exchanged():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1))
    assert with_matrix_pools(plain) is plain
    network = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d((2, 3))), nn.AdaptiveAvgPool2d((None, 4)))
    made = with_matrix_pools(network)
    assert isinstance(made[0][0], MatrixPool)
    assert made[1] is not network[1]
    assert isinstance(network[0][0], nn.AdaptiveAvgPool2d)
    assert isinstance(made[1], nn.AdaptiveAvgPool2d)


@pytest.mark.slow(
    reason="a file of UperNet's head for any size; the matrices themselves are tested above",
    guards=("foveate/exporters/", "foveate/dense/"),
)
def test_upernet_takes_images_of_any_size(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = fv.create_segmenter("test_efficientnet", "upernet(width=8, aux_width=8)", classes=3)
    made = fv.export(model, "onnx", tmp_path, time=False)
    (size,) = [check for check in made.checks if check.name.startswith("size ")]
    assert size.passed
    assert made.metadata["input"]["shape"][2:] == ["height", "width"]
