"""Paired differences: coverage by simulation; bootstrap, McNemar's test and Holm's correction: known values."""

import itertools
import math

import pytest
import torch

from foveate.studies.comparison.statistics import Difference, bootstrap_interval, holm, mcnemar, paired_difference


def simulate(generator, seeds, images, effect, seed_spread):
    p = torch.rand(images, generator=generator)
    shift = effect + seed_spread * torch.randn(seeds, 1, generator=generator)
    baseline = torch.rand(seeds, images, generator=generator) < p
    plan = torch.rand(seeds, images, generator=generator) < (p + shift).clamp(0, 1)
    return plan, baseline


@pytest.mark.parametrize("seeds,seed_spread", [(2, 0.0), (3, 0.03), (5, 0.1)])
def test_interval_covers_no_difference_at_least_as_often_as_it_says(seeds, seed_spread):
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        d = paired_difference(*simulate(generator, seeds, 150, 0.0, seed_spread))
        covered += d.low <= 0 <= d.high
        assert (d.p < 0.05) == (not d.low <= 0 <= d.high)
    assert covered / 200 >= 0.92


def test_a_large_difference_is_found_and_its_sign_is_right():
    generator = torch.Generator().manual_seed(0)
    plan, baseline = simulate(generator, 4, 400, 0.25, 0.01)
    d = paired_difference(plan, baseline)
    assert d.low > 0
    assert paired_difference(baseline, plan).high < 0
    assert d.mean == pytest.approx(100 * (plan.double().mean() - baseline.double().mean()).item())


def test_the_paired_t_test_where_images_do_not_matter():
    # Every image is alike, so only seeds are left: R's t.test(c(1, 0, 1, 1)) gives t = 3, df = 3, p = 0.05766889.
    plan = torch.tensor([1, 0, 1, 1], dtype=torch.bool)[:, None].expand(4, 500)
    d = paired_difference(plan, torch.zeros_like(plan))
    assert d.p == pytest.approx(0.05766889, abs=1e-7)
    assert (d.low, d.high) == (pytest.approx(75 - 79.5611574), pytest.approx(75 + 79.5611574))


def test_equal_runs_are_no_evidence():
    correct = torch.tensor([[True, False, True]]).repeat(2, 1)
    assert paired_difference(correct, correct) == Difference(0, 0, 0, 2, 1)
    assert bootstrap_interval(correct, correct) == (0, 0)
    assert mcnemar(correct, correct).p == 1


def test_more_images_narrow_the_interval():
    def width(images):
        d = paired_difference(*simulate(torch.Generator().manual_seed(1), 3, images, 0.0, 0.0))
        return d.high - d.low

    assert width(4000) < width(100) / 3


def test_prints_as_points_with_an_interval():
    assert str(Difference(1.24, -0.31, 2.79, 3, 0.1)) == "+1.2 [-0.3, +2.8]"


def test_bootstrap_is_that_of_every_possible_draw():
    # 2 seeds and 3 images: all 4 x 27 draws can be listed.
    plan = torch.tensor([[True, True, False], [True, False, False]])
    base = torch.tensor([[False, True, True], [False, False, False]])
    d = plan.double() - base.double()
    draws = [
        d[list(s)][:, list(i)].mean().item()
        for s in itertools.product(range(2), repeat=2)
        for i in itertools.product(range(3), repeat=3)
    ]
    # Between the quantiles a little to the left and right, as the distribution is one of steps.
    ends = 100 * torch.tensor(draws).quantile(torch.tensor([0.02, 0.03, 0.97, 0.98]))
    low, high = bootstrap_interval(plan, base, draws=40_000)
    assert ends[0] - 1e-4 <= low <= ends[1] + 1e-4
    assert ends[2] - 1e-4 <= high <= ends[3] + 1e-4


def test_bootstrap_of_one_seed_is_over_images():
    generator = torch.Generator().manual_seed(3)
    plan, base = simulate(generator, 1, 2000, 0.05, 0.0)
    d = paired_difference(plan, base)
    low, high = bootstrap_interval(plan, base)
    assert (low, high) == (pytest.approx(d.low, abs=0.2), pytest.approx(d.high, abs=0.2))


def test_bootstrap_repeats_itself():
    plan, base = simulate(torch.Generator().manual_seed(3), 3, 500, 0.05, 0.02)
    assert bootstrap_interval(plan, base) == bootstrap_interval(plan, base)


def discordant(better, worse):
    plan = torch.tensor([[True] * better + [False] * worse + [True] * 5])
    return mcnemar(plan, torch.tensor([[False] * better + [True] * worse + [True] * 5]))


# R: binom.test(better, better + worse)$p.value; the last by the normal limit with continuity correction, 2 Phi(-z).
@pytest.mark.parametrize(
    "better,worse,p,within",
    [
        (0, 0, 1.0, 1e-12),
        (5, 5, 1.0, 1e-12),
        (1, 9, 22 / 1024, 1e-12),
        (0, 6, 2 / 64, 1e-12),
        (12, 3, 2 * 576 / 2**15, 1e-12),  # 1 + 15 + 105 + 455 ways
        (5200, 4900, math.erfc((300 - 1) / math.sqrt(10100) / math.sqrt(2)), 2e-4),
    ],
)
def test_mcnemar(better, worse, p, within):
    found = discordant(better, worse)
    assert (found.better, found.worse) == (better, worse)
    assert found.p == pytest.approx(p, abs=within)


def test_holm():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03 0.06 0.06 0.02.
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(found) == ["a", "b", "c", "d"]
    assert list(found.values()) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.2}) == {"a": 0.2}
