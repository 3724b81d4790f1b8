"""Student's t, central and noncentral, and what seeds can show: against closed forms, another library and R."""

import math

import mpmath
import pytest
import torch

from foveate.studies.comparison.distributions import noncentral_t_cdf, t_cdf, t_quantile, two_sided_p
from foveate.studies.comparison.power import MOST_SEEDS, power, seeds_needed, smallest_difference


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
    assert t_quantile(probability, df) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("df", [1, 2.5, 8, 400])
@pytest.mark.parametrize("t", [-40.0, -3.0, 0.0, 0.5])
def test_t_cdf(t, df):
    tail = mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True) / 2
    assert t_cdf(t, df) == pytest.approx(float(tail if t < 0 else 1 - tail), abs=1e-10)
    assert two_sided_p(t, df) == pytest.approx(min(1, 2 * float(tail)), abs=1e-10)


@pytest.mark.parametrize("t,df,d", [(2.0, 3, 1.0), (-1.0, 1, 0.5), (4.3, 2, 6.0), (1.7, 60, -1.5), (12.7, 1, 20.0)])
def test_noncentral_t_against_its_definition(t, df, d):
    """P(Z + d <= t s) integrated over the chi density of s, by another library at 30 digits."""
    with mpmath.workdps(30):
        norm = 2 * mpmath.mpf(df / 2) ** (df / 2) / mpmath.gamma(df / 2)

        def integrand(s):
            return mpmath.ncdf(t * s - d) * norm * s ** (df - 1) * mpmath.exp(-df * s * s / 2)

        expected = float(mpmath.quad(integrand, [0, 0.5, 1, 1.5, 2, 4, 8, 20]))
    assert noncentral_t_cdf(t, df, d) == pytest.approx(expected, abs=1e-9)


def test_noncentral_t_against_r():
    # R, help of power.t.test: power.t.test(n = 20, delta = 1, sd = 1) has the power 0.8689528 (two samples, df = 38;
    # R leaves the far tail out unless strict = TRUE).
    found = 1 - noncentral_t_cdf(t_quantile(0.975, 38), 38, math.sqrt(10))
    assert found == pytest.approx(0.8689528, abs=5e-8)


# R's pwr: pwr.t.test(d = 0.2, n = 60, sig.level = 0.10, type = "one.sample"); G*Power: n = 34 and 15.
@pytest.mark.parametrize(
    "seeds,difference,alpha,expected",
    [(60, 0.2, 0.10, 0.4555818), (34, 0.5, 0.05, 0.8077775), (15, 0.8, 0.05, 0.8213105)],
)
def test_power_of_the_paired_t_test(seeds, difference, alpha, expected):
    assert power(seeds, difference, 1.0, alpha) == pytest.approx(expected, abs=5e-8)
    assert power(seeds, -3 * difference, 3.0, alpha) == pytest.approx(expected, abs=5e-8)  # sign and unit do not matter
    assert power(seeds, 0.0, 1.0, alpha) == pytest.approx(alpha, abs=1e-9)


def test_power_by_simulation():
    draws = 0.9 + torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = draws.mean(1) / draws.std(1) * 2
    found = (t.abs() > t_quantile(0.975, 3)).double().mean().item()
    assert power(4, 0.9, 1.0) == pytest.approx(found, abs=0.012)


# pwr.t.test(d, power = 0.8, type = "paired"): n = 33.37, 198.15, 9.94, rounded up.
@pytest.mark.parametrize("difference,expected", [(0.5, 34), (-0.5, 34), (0.2, 199), (1.0, 10), (50.0, 2)])
def test_seeds_needed(difference, expected):
    assert seeds_needed(difference, 1.0) == expected
    if expected > 2:
        assert power(expected - 1, difference, 1.0) < 0.8 <= power(expected, difference, 1.0)


def test_seeds_needed_without_an_answer():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-3, 1.0) is None
    assert power(MOST_SEEDS, 1e-3, 1.0) < 0.8
    assert seeds_needed(1.0, 0.0) == 2


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_smallest_difference(seeds):
    found = smallest_difference(seeds, 2.0)
    assert power(seeds, found, 2.0) == pytest.approx(0.8, abs=1e-6)
    assert smallest_difference(seeds, 0.0) == 0
