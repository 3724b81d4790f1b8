"""Student's t and Fisher's F distribution, with small errors in the far tail, too.

The tails are regularized incomplete beta functions, computed by their continued fraction (NIST Digital Library of
Mathematical Functions, 8.17.22): P(T > t) = I_x(df / 2, 1 / 2) / 2 with x = df / (df + t^2), and
P(F > f) = I_x(d2 / 2, d1 / 2) with x = d2 / (d2 + d1 f).
"""

from __future__ import annotations

import math
from functools import lru_cache

__all__ = ["f_quantile", "f_tail", "t_quantile", "t_tail"]

_TINY = 1e-300


def t_tail(t: float, df: float) -> float:
    """P(T > t), with a relative error below 1e-10 up to 50,000 degrees of freedom and below 1e-9 up to a million.

    Args:
        t: where.
        df: degrees of freedom, more than 0; they need not be whole.
    """
    if t < 0:
        return 1 - t_tail(-t, df)
    x, y = df / (df + t * t), t * t / (df + t * t)
    if y == 0:
        return 0.5
    # The fraction converges fast on one side of x = (a + 1) / (a + b + 2), with a = df / 2 and b = 1 / 2.
    if x < (df + 2) / (df + 5):
        return 0.5 * _beta_fraction(df / 2, 0.5, x, y)
    return 0.5 * (1 - _beta_fraction(0.5, df / 2, y, x))


@lru_cache(maxsize=4096)
def t_quantile(tail: float, df: float) -> float:
    """The t with P(T > t) = ``tail``.

    Args:
        tail: more than 0 and at most 0.5.
        df: degrees of freedom, at least 1; they need not be whole. More than a million are taken as a million.
    """
    if tail >= 0.5:
        return 0.0
    df = min(df, 1e6)
    log_norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi * df)
    low, high = -30.0, 1.0  # of u = log t
    while t_tail(math.exp(high), df) > tail:
        low, high = high, high + 1.0
    u = high
    for _ in range(200):
        # Newton's step for the logarithm of the tail, or half the bracket where that leads out of it.
        t = math.exp(u)
        found = t_tail(t, df)
        low, high = (u, high) if found > tail else (low, u)
        slope = math.exp(log_norm - (df + 1) / 2 * math.log1p(t * t / df) + u) / found if found else 0.0
        wanted = u + math.log(found / tail) / slope if slope else low
        before, u = u, wanted if low < wanted < high else (low + high) / 2
        if abs(u - before) <= 1e-14 * max(1.0, abs(u)):
            break
    return math.exp(u)


def _beta_fraction(a: float, b: float, x: float, y: float) -> float:
    """The regularized incomplete beta function I_x(a, b), with y = 1 - x, by Lentz's method."""
    log_front = a * math.log(x) + b * math.log(y) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    found, m = d, 0
    while True:
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            found *= c * d
        if abs(c * d - 1) < 1e-15 or m > 10_000:
            return math.exp(log_front) * found / a


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def f_tail(f: float, first: float, second: float) -> float:
    """P(F > f) of Fisher's F distribution.

    Args:
        f: where, at least 0.
        first: degrees of freedom of the numerator.
        second: of the denominator.
    """
    x, y = second / (second + first * f), first * f / (second + first * f)
    if y == 0:
        return 1.0
    if x < (second / 2 + 1) / (second / 2 + first / 2 + 2):
        return _beta_fraction(second / 2, first / 2, x, y)
    return 1 - _beta_fraction(first / 2, second / 2, y, x)


@lru_cache(maxsize=4096)
def f_quantile(tail: float, first: float, second: float) -> float:
    """The f with P(F > f) = ``tail``, which is more than 0 and at most 1."""
    second = min(second, 1e6)
    low, high = 0.0, 1.0
    while f_tail(high, first, second) > tail and high < 1e300:
        low, high = high, 4 * high
    for _ in range(80):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if f_tail(middle, first, second) > tail else (low, middle)
    return high
