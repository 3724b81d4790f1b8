"""Student's t against closed forms and another library; the power of the verdict against simulated verdicts."""

import math

import mpmath
import numpy as np
import pytest

from foveate.studies.comparison.distributions import t_quantile, t_tail
from foveate.studies.comparison.power import MOST_SEEDS, Variance, plan_power, power, variance_of

WIDE = 10**6  # images: so many that only seeds matter


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
        (0.5, 3, 0.0),
    ],
)
def test_t_quantile(probability, df, expected):
    assert t_quantile(1 - probability, df) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("df", [1, 2.5, 8, 400, 50_000])
def test_t_tail_and_its_inverse(df):
    for t in (1e-3, 0.5, 3.0, 40.0, 1e4):
        with mpmath.workdps(30):
            x = mpmath.mpf(df) / (df + mpmath.mpf(t) ** 2)
            tail = mpmath.betainc(mpmath.mpf(df) / 2, 0.5, 0, x, regularized=True) / 2
        if tail < 1e-280:
            continue
        assert t_tail(t, df) == pytest.approx(float(tail), rel=1e-9)
        assert t_tail(-t, df) == pytest.approx(1 - float(tail), rel=1e-9)
        assert t_quantile(t_tail(t, df), df) == pytest.approx(t, rel=1e-5)
    for tail in (0.4999, 0.025, 0.05 / 400, 1e-30, 1e-100):
        assert t_tail(t_quantile(tail, df), df) == pytest.approx(tail, rel=1e-9)


# R's pwr: pwr.t.test(d = 0.2, n = 60, sig.level = 0.10, type = "one.sample"); G*Power: n = 34 and 15.
@pytest.mark.parametrize(
    "seeds,difference,alpha,expected",
    [(60, 0.2, 0.10, 0.4555818), (34, 0.5, 0.05, 0.8077775), (15, 0.8, 0.05, 0.8213105)],
)
def test_where_only_seeds_matter_it_is_the_power_of_the_paired_t_test(seeds, difference, alpha, expected):
    # One plan, no end of images: the interval is the paired t test's over seeds.
    variance = Variance(1.0, 0.0, 0.0, 1, alpha)
    assert power(difference, variance, seeds, WIDE) == pytest.approx(expected, abs=0.006)
    assert power(-difference, variance, seeds, WIDE) == pytest.approx(expected, abs=0.006)  # the sign does not matter
    assert power(0.0, variance, seeds, WIDE) == pytest.approx(alpha, abs=0.004)


def test_where_only_images_matter_it_is_that_of_a_z_test():
    # 1.96 + 0.84 standard errors have 80% power; seeds do not help.
    variance = Variance(0.0, 0.0, 2500.0, 1, 0.05)  # 0.5 points of standard error on 10,000 images
    assert power(2.8016 * 0.5, variance, 5, 10_000) == pytest.approx(0.8, abs=0.002)
    assert power(2.8016 * 0.5, variance, 500, 10_000) == pytest.approx(0.8, abs=0.002)


@pytest.mark.parametrize("plans", [1, 4])
def test_power_is_that_of_simulated_verdicts(simulation, plans):
    seeds, worse, repetitions = 4, 8.0, 400
    world = simulation.World(plans, 2.0, images=300, seed=3)
    scores = world.scores(repetitions, seeds)
    found = simulation.paired(world.right(scores, [worse]))
    share = (simulation.verdicts(found)[:, 0] < 0).mean()
    # The parts of the variance from the same draws; the pooled one is not biased, but the larger of two is.
    d = np.diff(world.right(scores, [worse])[:, :2].astype(np.int8), axis=1)[:, 0]
    single = 1e4 * d.mean(-1).var(-1, ddof=1).mean()
    rest, image = 1e4 * 300 * found.rest[:, 0].mean(), 1e4 * 300 * (found.image[:, 0] - 2 / 300**2).mean()
    variance = Variance(single - rest / 300, rest, image, plans, 0.05 / plans)
    assert 0.3 < share < 0.95
    assert power(worse, variance, seeds, 300) == pytest.approx(share, abs=0.08)


def test_what_is_shown_and_needed_have_the_power_that_is_said():
    variance = Variance(2.0, 900.0, 400.0, 2, 0.025)
    found = plan_power(2.5, variance, 3, 1000)
    assert power(found.smallest, variance, 3, 1000) == pytest.approx(0.8, abs=1e-6)
    assert power(2.5, variance, found.seeds_needed, 1000) >= 0.8 > power(2.5, variance, found.seeds_needed - 1, 1000)
    assert found.images_needed is None  # three seeds that differ by 1.4 points do not show 2.5 on any images
    calm = Variance(0.01, 900.0, 400.0, 2, 0.025)
    found = plan_power(1.5, calm, 5, 1000)
    assert power(1.5, calm, 5, found.images_needed) >= 0.8 > power(1.5, calm, 5, found.images_needed - 1)


def test_no_number_of_seeds_replaces_images():
    found = plan_power(0.5, Variance(1.0, 0.0, 400.0, 1, 0.05), 3, 1000)
    # The images alone have a standard error of 0.63 points.
    assert found.seeds_needed is None
    assert power(0.5, Variance(1.0, 0.0, 400.0, 1, 0.05), MOST_SEEDS, 1000) < 0.3
    assert plan_power(0.0, Variance(1.0, 0.0, 400.0, 1, 0.05), 3, 1000).seeds_needed is None


@pytest.mark.parametrize("seeds,plans", [(2, 1), (3, 1), (3, 5)])
def test_the_variance_of_seeds_is_as_often_too_large_as_too_small(simulation, seeds, plans):
    world = simulation.World(plans, 4.0, images=400)
    found = simulation.paired(world.right(world.scores(400, seeds)))
    truth = 2 * 4.0**2
    single = [variance_of(simulation.one(found, k), 0, 0.05).seed for k in range(400)]
    assert 0.4 < np.mean(np.array(single) > truth) < 0.6
