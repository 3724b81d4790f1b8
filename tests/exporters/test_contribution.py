"""The numbers of what an attention module adds, beside numpy's."""

import numpy as np
import pytest

from foveate.exporters.contribution import Comparison


def compared(x, d, e):
    found = Comparison()
    for part in range(len(x)):
        found.add(x[part], d[part], e[part])
    return found.contribution("layer1")


@pytest.fixture
def arrays():
    draw = np.random.default_rng(0)
    return (draw.normal(1, 2, (4, 3, 5, 5)).astype(np.float32) for _ in range(3))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_as_numpy_computes_them(arrays, scale):
    x, d, noise = arrays
    d, e = scale * d, scale * (d + 0.3 * noise)
    made = compared(x, d, e)
    assert made.correlation == pytest.approx(np.corrcoef(d.ravel(), e.ravel())[0, 1], abs=1e-6)
    assert made.error == pytest.approx(np.linalg.norm(e - d) / np.linalg.norm(d), rel=1e-5)
    assert not made.lost
    assert f"correlation {made.correlation:.3f}" in str(made)


def test_unrelated_is_lost(arrays):
    x, d, noise = arrays
    made = compared(x, d, noise)
    assert made.lost
    assert abs(made.correlation) < 0.3
    assert made.error > 0.5


def test_nothing_left_is_lost(arrays):
    x, d, _ = arrays
    made = compared(x, d, 0 * d)
    assert (made.correlation, made.error, made.lost) == (0.0, pytest.approx(1.0), True)


def test_nothing_added_has_no_correlation(arrays):
    x, d, noise = arrays
    made = compared(x, 0 * d, 0.01 * noise)
    assert (made.correlation, made.error, made.lost) == (None, None, False)
    assert "adds nothing" in str(made)


def test_a_constant_is_judged_by_its_error(arrays):
    x, d, _ = arrays
    same, other = compared(x, 0 * d + 0.5, 0 * d + 0.49), compared(x, 0 * d + 0.5, 0 * d)
    assert same.correlation is None
    assert same.error == pytest.approx(0.02)
    assert not same.lost
    assert other.lost
    assert "the same everywhere" in str(other)
