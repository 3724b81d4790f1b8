"""The fused attention against the plain one, for rows of any widths."""

import pytest
import torch

from foveate.kernels.softmax_attention import flatten_positions, softmax_attention, softmax_map


@pytest.mark.parametrize("d,e", [(4, 4), (2, 6), (6, 2), (1, 16)])
@pytest.mark.parametrize("n,s", [(30, 30), (30, 9), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_equals_the_definition(n, s, d, e, scale):
    torch.manual_seed(0)
    given = [torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in ((n, d), (s, d), (s, e))]
    q, k, v = given
    fast, plain = softmax_attention(q, k, v, scale), softmax_map(q, k, scale) @ v
    assert (fast - plain).abs().max() <= 1e-12
    weights = torch.randn_like(plain)
    ours = torch.autograd.grad((fast * weights).sum(), given)
    theirs = torch.autograd.grad((plain * weights).sum(), given)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-11


def test_map_rows_sum_to_one():
    q, k = torch.randn(2, 7, 3), torch.randn(2, 5, 3)
    torch.testing.assert_close(softmax_map(q, k, 1.0).sum(2), torch.ones(2, 7))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_positions_are_in_raster_order(memory_format):
    x = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=memory_format)
    rows = flatten_positions(x)
    assert rows.is_contiguous()
    assert rows[0, :, 0].tolist() == list(range(12))


def test_positions_of_channels_last_are_a_view():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert flatten_positions(x).data_ptr() == x.data_ptr()
