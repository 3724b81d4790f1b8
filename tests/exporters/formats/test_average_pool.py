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


class Bins(nn.Module):
    """A network that pools to 3 x 3 positions, twice with one module."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d((3, 3))
        self.again = self.pool
        self.fc = nn.Linear(72, 4)

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))


class Doubled(nn.AdaptiveAvgPool2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_hangs_on_a_pool_stays():
    torch.manual_seed(0)
    network = fv.insert(Bins().eval(), "se after pool", input_size=32)
    network.pool.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    images = torch.randn(2, 3, 32, 40)
    expected = network(images)
    made = with_matrix_pools(network)
    assert isinstance(made.pool, MatrixPool)
    assert made.again is made.pool
    torch.testing.assert_close(made(images), expected)
    assert list(fv.attentions(made)) == ["pool"]
    assert fv.attentions(made)["pool"] is not fv.attentions(network)["pool"]
    assert torch.equal(network(images), expected)


def test_a_pool_with_a_forward_pass_of_its_own_stays():
    own = nn.AdaptiveAvgPool2d(2)
    own.forward = lambda x: x[:, :, :2, :2]
    for pool in (Doubled(2), own):
        assert with_matrix_pools(network := nn.Sequential(pool)) is network


def test_a_file_for_any_size_holds_the_attention_after_such_a_pool(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = fv.insert(Bins().eval(), "se after pool", input_size=32)
    made = fv.export(network, "onnx", tmp_path, size="dynamic", images=2, time=False, check=False)
    for side in (32, 48):
        images = torch.randn(2, 3, side, side + 8)
        with torch.no_grad():
            torch.testing.assert_close(
                fv.open_exported(made.path).logits(images), network(images), rtol=1e-4, atol=1e-5
            )
    checked = fv.export(network, "onnx", tmp_path, size="dynamic", images=2, time=False, overwrite=True)
    assert {check.name for check in checked.checks if check.passed} >= {"logits", "metadata"}
