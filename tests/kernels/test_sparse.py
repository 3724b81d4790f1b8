"""Blocks and columns against the patterns, and the patterns against their definition and their published counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.kernels import sparse
from foveate.kernels.sparse import local_attention, local_pattern, pattern_map, strided_attention, strided_pattern


def test_pairs_of_1024_positions_at_stride_32():
    local, strided = local_pattern(1024, 32, True), strided_pattern(1024, 32, True)
    assert local.sum() == 32_272
    assert strided.sum() == 16_896
    assert (local | strided).sum() == 48_144
    assert torch.ones(1024, 1024).tril().sum() == 524_800


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n,window,stride", [(1, 1, 1), (12, 3, 4), (13, 5, 5), (7, 20, 20)])
def test_patterns_are_as_defined(n, window, stride, causal):
    local, strided = local_pattern(n, window, causal), strided_pattern(n, stride, causal)
    for i in range(n):
        for j in range(n):
            allowed = j <= i or not causal
            assert local[i, j] == (allowed and abs(i - j) < window)
            assert strided[i, j] == (allowed and (i - j) % stride == 0)


@pytest.mark.parametrize("n,stride", [(1024, 32), (12, 4), (13, 5), (7, 20), (1, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_two_steps_reach_every_pair_that_is_allowed(n, stride, causal):
    reached = strided_pattern(n, stride, causal).float() @ local_pattern(n, stride, causal).float() > 0
    assert torch.equal(reached, torch.ones(n, n).tril() > 0 if causal else torch.ones(n, n) > 0)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 20),
    distance=st.integers(1, 24),
    causal=st.booleans(),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    kind=st.sampled_from([(local_attention, local_pattern), (strided_attention, strided_pattern)]),
)
def test_equals_the_plain_attention_over_the_pattern(n, distance, causal, batch, heads, kind):
    attention, pattern = kind
    torch.manual_seed(n * distance)
    given = [torch.randn(batch, heads, n, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    q, k, v = given
    graph = n % 2 == 0  # half of them as they are exported
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "into_a_graph", lambda: graph)
        parts = n // distance if n % distance == 0 and n % 3 else None
        fast = attention(q, k, v, distance, causal, parts)
    plain = pattern_map(q, k, pattern(n, distance, causal)) @ v
    assert (fast - plain).abs().max() <= 1e-12
    weights = torch.randn_like(plain)
    ours = torch.autograd.grad((fast * weights).sum(), given)
    theirs = torch.autograd.grad((plain * weights).sum(), given)
    for a, b in zip(ours, theirs, strict=True):
        assert a.isfinite().all()
        assert (a - b).abs().max() <= 1e-11
