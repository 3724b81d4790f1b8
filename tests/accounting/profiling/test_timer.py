"""Medians, their intervals, and calls in turns."""

import gc

import numpy as np
import pytest

from foveate.accounting.profiling.timer import Quantiles, interleaved


def test_calls_take_turns():
    order = []
    found = interleaved([lambda: order.append("A"), lambda: order.append("B")], 3, warmup=1)
    assert "".join(order) == "AB" * 4
    assert len(found) == 3
    assert all(len(one) == 2 and min(one) >= 0 for one in found)


@pytest.mark.parametrize("rounds,expected", [(2, 2), (3, 3), (50, 3)])
def test_no_round_begins_late_but_three_are_run(rounds, expected):
    calls = []
    assert len(interleaved([lambda: calls.append(1)], rounds, warmup=0, seconds=1e-9)) == expected == len(calls)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_as_before_even_after_an_error(enabled):
    seen = []
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        interleaved([lambda: seen.append(gc.isenabled())], 1, warmup=0)
        assert (seen, gc.isenabled()) == ([False], enabled)
        with pytest.raises(ZeroDivisionError):
            interleaved([lambda: 1 / 0], 1, warmup=0)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("count,low,high", [(1, 1, 1), (5, 1, 5), (6, 1, 6), (9, 2, 8), (20, 6, 15), (30, 10, 21)])
def test_the_interval_of_the_sign_test(count, low, high):
    """From a table of the binomial distribution: the ranks of the interval's ends."""
    found = Quantiles.of([float(n) for n in range(count, 0, -1)])
    assert (found.low, found.high, found.count) == (low, high, count)
    assert found.median == (count + 1) / 2


def test_quartiles():
    found = Quantiles.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.lower_quartile, found.median, found.upper_quartile) == (2, 3, 4)


def test_the_interval_holds_the_true_median_often_enough():
    draw = np.random.default_rng(0)
    found = [Quantiles.of(draw.exponential(size=15)) for _ in range(400)]
    assert np.mean([one.low <= np.log(2) <= one.high for one in found]) >= 0.95
