"""Global average pooling against its equation."""

import timm
import torch

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.pooling.gap import GlobalAveragePool


def equations(_, x):
    total = torch.zeros(x.shape[:2], dtype=x.dtype)
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            total = total + x[:, :, row, column]
    return total / (x.shape[2] * x.shape[3])


def test_equals_the_equation(agree):
    agree(GlobalAveragePool(16), equations, torch.randn(3, 16, 7, 11), bound=1e-12)


def test_the_output_is_the_sum_that_the_map_weighs():
    module, x = GlobalAveragePool(8), torch.randn(2, 8, 7, 11, dtype=torch.float64)
    weights = module.attend(x)
    torch.testing.assert_close(weights, torch.full((2, 7, 11), 1 / 77, dtype=torch.float64))
    torch.testing.assert_close(torch.einsum("bhw,bchw->bc", weights, x), module(x))


def test_is_what_a_resnet_does():
    torch.manual_seed(0)
    network, image = timm.create_model("resnet10t").eval(), torch.rand(2, 3, 64, 96)
    features = network.forward_features(image)
    torch.testing.assert_close(network.fc(GlobalAveragePool(512)(features)), network(image))


def test_costs_nothing():
    module = GlobalAveragePool(512)
    assert not list(module.parameters())
    assert count_operations(module.eval().to("meta"), (512, 14, 14))[""].macs == 0
