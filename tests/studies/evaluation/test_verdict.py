"""The rule of the verdict: by example, and never against the accuracy that is printed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.studies.comparison.statistics import Difference
from foveate.studies.evaluation.verdict import MARGIN, Effect, Measures, points, verdict_of


def effect(low, high, p=0.01, changed=0.5, images=300):
    return Effect(Difference((low + high) / 2, low, high, 1, p), p, changed, images)


def measures(off, shuffled=None, shuffles="map", size=0.1, constant=0.0, channel=None):
    return Measures(
        off=off,
        shuffled=shuffled,
        shuffles=shuffles if shuffled else None,
        contribution=size,
        contribution_channel=size if channel is None else channel,
        varies=None if constant is None else 0.5 * (1 - constant),
        constant=constant,
    )


SAME = effect(0, 0, p=1.0, changed=0.0)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (measures(effect(1, 5)), "harmful"),
        (measures(effect(1, 5, p=0.2)), "unclear"),  # a handful of images: McNemar does not agree
        (measures(effect(1, 5), size=1e-5, constant=1.0), "harmful"),
        # One channel of large values hides the contribution in the norm: the accuracy tells.
        (measures(effect(-52, -48), size=1e-5), "works"),
        (measures(effect(-5, -1), size=1e-5, channel=1e-5), "works"),
        (measures(SAME, constant=1.0), "inert"),
        (measures(effect(0, 0, p=1.0, changed=0.0, images=299)), "unclear"),
        (measures(effect(0, 0, p=1.0, changed=0.0, images=20), size=1e-5), "inert"),
        (measures(effect(0, 0, p=1.0, changed=0.0, images=20), size=1e-5, channel=0.5), "unclear"),
        (measures(effect(-0.9, 0.9, images=299)), "unclear"),
        (measures(effect(-30, 5, p=0.5, images=30), size=1e-5), "unclear"),
        (measures(effect(-5, -1), constant=1.0), "static"),
        (measures(effect(-5, -1), SAME, constant=1.0), "static"),
        (measures(effect(-5, -1), effect(-5, -1), constant=1.0), "works"),  # another image's map does harm
        (measures(effect(-5, -1), effect(-5, 5, p=1.0), "contribution", constant=1.0), "works"),
        (measures(effect(-5, -1), SAME, "contribution", constant=1.0), "static"),
        (measures(effect(-5, -1), constant=0.5), "works"),
        (measures(effect(-5, -1), constant=None), "works"),
        (measures(effect(-0.9, -0.1)), "works"),  # little, and beyond doubt
        (measures(effect(-0.9, 0.9)), "inert"),
        (measures(effect(-3, 0.9, p=0.5)), "unclear"),
        (measures(effect(-3, 0.9, p=0.5), constant=1.0), "static"),
        (measures(None, size=None), "unclear"),
        (measures(None, size=None, constant=1.0), "static"),
    ],
)
def test_the_rule(found, verdict):
    assert verdict_of(found)[0] == verdict
    assert verdict_of(found)[1]


def test_another_images_map_that_does_as_well():
    assert "does as well" in verdict_of(measures(effect(-5, -1), effect(-0.5, 0.5)))[1]
    assert "with another image's map -3.0" in verdict_of(measures(effect(-5, -1), effect(-5, -1)))[1]


def test_the_reason_names_the_predictions_that_change():
    found = effect(-0.9, 0.9, changed=0.03, images=400)
    words = "without it +0.0 [-0.9, +0.9] points, 12 of 400 predictions change: no effect beyond 1 point"
    assert verdict_of(measures(found))[1] == words


NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda x: x if abs(x) > 1e-3 else 0.0)
SHARES = st.one_of(st.just(0.0), st.floats(1e-9, 1), st.just(1.0))


@st.composite
def effects(draw):
    """Any effect that images can have: ends in order, and a difference only where predictions change."""
    low, mean, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)))
    changed = draw(SHARES)
    if changed == 0:  # few images leave room on both sides all the same
        low, mean, high = min(low, 0.0), 0.0, max(high, 0.0)
    images = draw(st.sampled_from([1, 10, 299, 300, 50_000]))
    return Effect(Difference(mean, low, high, 1, 0.5), draw(SHARES), changed, images)


@given(
    off=st.one_of(st.none(), effects()),
    shuffled=st.one_of(st.none(), effects()),
    shuffles=st.sampled_from(["map", "contribution"]),
    size=st.one_of(st.none(), st.floats(0, 10)),
    channel=st.one_of(st.none(), st.floats(0, 1e6)),
    constant=st.one_of(st.none(), SHARES),
)
def test_no_verdict_contradicts_the_accuracy_it_prints(off, shuffled, shuffles, size, channel, constant):
    verdict, reason = verdict_of(
        Measures(
            off=off,
            shuffled=shuffled,
            shuffles=shuffles,
            contribution=size,
            contribution_channel=channel,
            varies=0.0,
            constant=constant,
        )
    )
    assert verdict in ("works", "static", "inert", "harmful", "unclear")
    if off is None:
        assert verdict in ("static", "unclear")
        return
    printed = points(off.difference)
    mean, low, high = map(float, re.findall(r"[+-][\d.]+", printed))
    assert low <= mean <= high
    # What is printed lies on the side of 0 on which the number is.
    for number, exact in ((low, off.difference.low), (mean, off.difference.mean), (high, off.difference.high)):
        assert (number > 0, number < 0) == (exact > 0, exact < 0)
    significant = off.p < 0.05
    assert (verdict == "harmful") == (low > 0 and significant)
    if high < 0 and significant:
        assert verdict in ("works", "static")
    if verdict == "works":
        assert high < 0
    if verdict == "inert":
        assert not (significant and (low > 0 or high < 0))
        assert -MARGIN <= mean <= MARGIN
        assert off.changed == 0 or -MARGIN <= low <= high <= MARGIN
    if verdict == "static":
        assert constant == 1
        # A map that is the same for every image cannot be missed when another image's stands in its place.
        assert shuffled is None or not (
            shuffled.p < 0.05 and (shuffled.difference.high < 0 or shuffled.difference.low > 0)
        )
    if verdict in ("works", "harmful", "static", "unclear"):
        assert printed in reason
    if verdict == "inert" and off.changed:
        assert printed in reason


@pytest.mark.parametrize(
    ("numbers", "printed"),
    [
        ((-2.0, -3.04, -1.0), "-2.0 [-3.0, -1.0]"),
        ((0.5, 0.04, 1.0), "+0.50 [+0.04, +1.00]"),
        ((0.0, -0.004, 0.004), "+0.000 [-0.004, +0.004]"),
        ((-1.0, -2.0, -0.0004), "-1.0000 [-2.0000, -0.0004]"),
        ((-0.0, 0.0, 0.0), "+0.0 [+0.0, +0.0]"),
    ],
)
def test_points_show_the_side_of_zero(numbers, printed):
    mean, low, high = numbers
    assert points(Difference(mean, low, high, 1, 0.5)) == printed
