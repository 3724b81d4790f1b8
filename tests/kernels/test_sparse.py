"""Blocks and columns against the patterns, and the patterns against their definition and their published counts."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.kernels import sparse
from foveate.kernels.dispatch import use_fused
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
    way=st.sampled_from(["as it is", "blocks", "a graph"]),  # as it is: so few positions are one dense attention
)
def test_equals_the_plain_attention_over_the_pattern(n, distance, causal, batch, heads, kind, way):
    attention, pattern = kind
    torch.manual_seed(n * distance)
    given = [torch.randn(batch, heads, n, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    q, k, v = given
    with pytest.MonkeyPatch.context() as patch, use_fused(way == "as it is"):
        patch.setattr(sparse, "into_a_graph", lambda: way == "a graph")
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


def pairs(attention, n, distance, causal):
    """The pairs that each attention of a call holds."""
    seen, given = [], [torch.randn(1, 2, n, 4) for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        dense = torch.nn.functional.scaled_dot_product_attention
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda q, k, v, **how: [seen.append(q.shape[0] * q.shape[2] * k.shape[2]), dense(q, k, v, **how)][1],
        )
        attention(*given, distance, causal)
    return sum(seen)


@pytest.mark.parametrize("causal,sides", [(True, 2), (False, 3)])
def test_local_attention_is_dense_where_that_is_no_more_work_or_there_are_few_positions(causal, sides):
    few, many = sparse.FEW, 2 * sparse.FEW
    assert pairs(local_attention, few, 8, causal) == few**2
    assert pairs(local_attention, many, 8, causal) == many * sides * 8
    assert pairs(local_attention, many, many // 2, causal) == many**2
    assert pairs(local_attention, many, 2 * many, causal) == many**2
    with use_fused(False):
        assert pairs(local_attention, few, 8, causal) == few * sides * 8


def test_what_a_transform_or_inference_mode_makes_is_not_kept_for_others():
    sparse._kept_mask.cache_clear()
    given = [torch.randn(2, 2, 40, 4, requires_grad=True) for _ in range(3)]

    def summed(*qkv):
        return sum(local_attention(*qkv, window, True).sum() for window in (3, 40)).sum()

    with torch.inference_mode():
        summed(*given)
    assert sparse._kept_mask.cache_info().currsize == 1
    sparse._kept_mask.cache_clear()
    torch.func.grad(summed)(*[t.detach() for t in given])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: its fused attention goes through a batch one by one
        torch.vmap(summed)(*[t.detach()[None] for t in given])
    summed(*[t.to("meta") for t in given])
    assert sparse._kept_mask.cache_info().currsize == 0
    summed(*given).backward()
    assert all(t.grad.isfinite().all() for t in given)


def test_a_number_that_is_none_stays_in_its_image():
    q, k, v = (torch.randn(2, 2, 90, 4) for _ in range(3))
    v[0, :, 3], k[0, :, 80] = float("nan"), float("inf")
    for attention in (local_attention, strided_attention):
        assert attention(q, k, v, 9, False)[1].isfinite().all()
