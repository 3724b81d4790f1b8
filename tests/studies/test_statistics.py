"""Paired differences: quantiles against tables, coverage by simulation, verdicts."""

import math

import pytest
import torch

from foveate.studies.statistics import Difference, paired_difference, t_quantile


# Closed forms: df = 1 is the tangent, df = 2 is algebraic; the others from printed tables of Student's t.
@pytest.mark.parametrize(
    "probability,df,expected",
    [
        (0.975, 1, math.tan(math.pi * 0.475)),
        (0.9, 2, 0.8 / math.sqrt(2 * 0.9 * 0.1)),
        (0.975, 5, 2.570582),
        (0.95, 10, 1.812461),
        (0.975, 30, 2.042272),
        (0.975, 1e5, 1.959988),
    ],
)
def test_t_quantile(probability, df, expected):
    assert t_quantile(probability, df) == pytest.approx(expected, rel=1e-5)


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
    assert covered / 200 >= 0.92


def test_a_large_difference_is_found_and_its_sign_is_right():
    generator = torch.Generator().manual_seed(0)
    plan, baseline = simulate(generator, 4, 400, 0.25, 0.01)
    d = paired_difference(plan, baseline)
    assert d.verdict == "better than the baseline"
    assert paired_difference(baseline, plan).verdict == "worse than the baseline"
    assert d.mean == pytest.approx(100 * (plan.double().mean() - baseline.double().mean()).item())


def test_equal_runs_are_no_evidence():
    correct = torch.tensor([[True, False, True]])
    d = paired_difference(correct.repeat(2, 1), correct.repeat(2, 1))
    assert (d.mean, d.low, d.high) == (0, 0, 0)
    assert d.verdict == "no evidence of a difference"


def test_one_seed_is_said():
    d = paired_difference(torch.ones(1, 50, dtype=torch.bool), torch.zeros(1, 50, dtype=torch.bool))
    assert "one seed" in d.verdict


def test_more_images_narrow_the_interval():
    def width(images):
        d = paired_difference(*simulate(torch.Generator().manual_seed(1), 3, images, 0.0, 0.0))
        return d.high - d.low

    assert width(4000) < width(100) / 3


def test_prints_as_points_with_an_interval():
    assert str(Difference(1.24, -0.31, 2.79, 3)) == "+1.2 [-0.3, +2.8]"
