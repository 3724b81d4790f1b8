"""Student's t distribution, central and noncentral, computed from its definition.

With Z standard normal and X chi-squared with v degrees of freedom, T = (Z + d) / sqrt(X / v). For d = 0

    P(0 <= T <= t) = Gamma((v+1)/2) / (Gamma(v/2) sqrt(pi))  integral from 0 to atan(t / sqrt(v)) of cos(u)^(v-1) du

and in general

    P(T <= t) = integral over s > 0 of Phi(t s - d) g(s) ds,   g(s) = 2 (v/2)^(v/2) / Gamma(v/2) s^(v-1) exp(-v s^2 / 2)

where s = sqrt(X / v). Both integrands are smooth, so Simpson's rule on a fine grid gives about ten digits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["noncentral_t_cdf", "t_cdf", "t_quantile", "two_sided_p"]

_STEPS = 2000  # even
_FAR = 10.0  # standard deviations of s, at most 1 / sqrt(df), beyond which nothing is left


def noncentral_t_cdf(t: float, df: int, noncentrality: float) -> float:
    """The noncentral t distribution.

    Args:
        t: where.
        df: degrees of freedom, at least 1.
        noncentrality: d in the formula.

    Returns:
        P(T <= t), with an error of about 1e-10.
    """
    reach = _FAR / math.sqrt(df)
    s = torch.linspace(max(0.0, 1 - reach), 1 + reach, _STEPS + 1, dtype=torch.float64)
    log_norm = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    density = torch.exp(log_norm + torch.special.xlogy(df - 1, s) - df / 2 * s**2)
    return _simpson(torch.special.ndtr(t * s - noncentrality) * density, float(s[1] - s[0]))


def t_cdf(t: float, df: float) -> float:
    """Student's t distribution: P(T <= t), with an error of about 1e-12; ``df`` >= 1 need not be whole."""
    u = torch.linspace(0, math.atan(t / math.sqrt(df)), _STEPS + 1, dtype=torch.float64)
    norm = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    return 0.5 + norm * _simpson(torch.cos(u) ** (df - 1), float(u[1]))


def t_quantile(probability: float, df: float) -> float:
    """The quantile of Student's t distribution.

    Args:
        probability: 0.5 to 1, exclusive.
        df: degrees of freedom, at least 1; they need not be whole.
    """
    # Right of 0 the distribution is concave, so Newton's steps come from the left and never go too far.
    log_norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi * df)
    t, step = 0.0, 1.0
    while step > 1e-10 * max(1.0, t):
        density = math.exp(log_norm - (df + 1) / 2 * math.log1p(t * t / df))
        step = (probability - t_cdf(t, df)) / density
        t += step
    return t


def two_sided_p(t: float, df: float) -> float:
    """How often |T| is at least |t|."""
    return min(1.0, max(0.0, 2 * t_cdf(-abs(t), df)))


def _simpson(values: Tensor, width: float) -> float:
    weights = torch.ones_like(values)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return float((values * weights).sum()) * width / 3
