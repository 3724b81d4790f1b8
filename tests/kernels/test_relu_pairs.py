"""Running sums against all pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.kernels.relu_pairs import relu_pairs, relu_pairs_plain


@settings(max_examples=50, deadline=None)
@given(batch=st.integers(1, 3), n=st.integers(1, 9), s=st.integers(1, 9), d=st.integers(1, 4), seed=st.integers(0, 99))
def test_equals_the_definition(batch, n, s, d, seed):
    torch.manual_seed(seed)
    given = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((batch, n), (batch, s), (batch, s, d))
    ]
    fast, plain = relu_pairs(*given), relu_pairs_plain(*given)
    assert (fast - plain).abs().max() <= 1e-12
    weights = torch.randn_like(plain)
    ours = torch.autograd.grad((fast * weights).sum(), given)
    theirs = torch.autograd.grad((plain * weights).sum(), given)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-12


def test_equal_scores_and_closed_pairs():
    a = torch.tensor([[0.0, -1.0, 2.0]])
    b = torch.tensor([[1.0, 1.0, -2.0, 0.0]])  # pairs that sum to 0 exactly, twins, and an open one
    v = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    assert relu_pairs(a, b, v).flatten().tolist() == relu_pairs_plain(a, b, v).flatten().tolist() == [3.0, 0.0, 25.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_float32_whatever_the_type(dtype):
    torch.manual_seed(0)
    a, b, v = torch.randn(1, 8).to(dtype), torch.randn(1, 4096).to(dtype), torch.rand(1, 4096, 2).to(dtype) / 64
    out = relu_pairs(a, b, v)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), relu_pairs_plain(a.double(), b.double(), v.double()), rtol=0.01, atol=0)
