import xml.etree.ElementTree as ET

import pytest

from foveate.studies.reporting.charts.curves import MOST_CURVES, curves


def run(*top1):
    return [
        {"epoch": float(k), "train_loss": 1.0 / (k + 1), "eval_loss": 2.0, "eval_top1": value}
        for k, value in enumerate(top1)
    ]


def lines(svg, kind):
    found = [line for line in ET.fromstring(svg).iter("polyline") if line.get("class") == kind]  # noqa: S314 - ours
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in found]


@pytest.mark.parametrize("width", [760, 350])
def test_means_seeds_and_the_baseline(width):
    svg = curves({"none": [run(0.5, 0.6), run(0.5, 0.8)], "se <b>": [run(0.4, 0.9), run(0.6, 0.9)]}, width)
    assert "se &lt;b&gt;" in svg
    assert len(lines(svg, "curve thin")) == 4
    (base,) = lines(svg, "curve base")  # in the other plan's picture, at the baseline's own values
    none = lines(svg, "curve")[0]
    assert [y - base[0][1] for _, y in base] == pytest.approx([y - none[0][1] for _, y in none], abs=0.2)
    mean, seeds = none, lines(svg, "curve thin")[:2]
    assert mean[1][1] == pytest.approx((seeds[0][1][1] + seeds[1][1][1]) / 2, abs=0.2)
    xs = [x for kind in ("curve", "curve thin", "curve base", "curve dotted") for of in lines(svg, kind) for x, _ in of]
    assert 0 <= min(xs) < max(xs) <= width


def test_what_cannot_be_drawn():
    assert curves({}) == ""
    assert curves({"none": [[], []]}) == ""
    assert "circle" in curves({"none": [run(0.5)]})  # one epoch is a point
    nothing = [{"epoch": 0.0, "train_loss": float("nan"), "eval_loss": None, "eval_top1": 0.5}]
    assert lines(curves({"none": [nothing]}), "curve thin") == []
    many = curves({f"plan {k}": [run(0.1, 0.2)] for k in range(MOST_CURVES + 3)})
    assert f"plan {MOST_CURVES - 1}<" in many
    assert f"plan {MOST_CURVES}<" not in many
