import itertools
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.studies.reporting.charts.labelling import Box, labels, lead
from foveate.studies.reporting.charts.scatter import Point, points_of, scatter

ROW = {"plan": "se", "macs": 100, "top1": 80.0}


def test_points_of():
    more = {"difference": -2.0, "difference_low": -5.0, "difference_high": 1.0, "top1_per_seed": [79.0, 81.0]}
    assert points_of([ROW, {**ROW, **more}, {"plan": "x"}, {**ROW, "top1": float("nan")}]) == [
        Point("se", 100, 80.0),
        # The interval of the difference, moved so that the difference itself is the accuracy.
        Point("se", 100, 80.0, 77.0, 83.0, (79.0, 81.0)),
    ]


def marks(svg, kind):
    return [node for node in ET.fromstring(svg).iter() if kind in node.get("class", "").split()]  # noqa: S314 - ours


def test_what_is_drawn():
    points = [Point("none", 3e8, 80), Point("<b>", 2e8, 82, 79, 85, (81, 83)), Point("se", 3.5e8, 81)]
    svg = scatter(points)
    xs, ys = ([float(node.get(key)) for node in marks(svg, "point")] for key in ("cx", "cy"))
    assert xs[1] < xs[0] < xs[2]
    assert ys[1] < ys[2] < ys[0]
    assert float(marks(svg, "base")[0].get("y1")) == ys[0]
    assert len(marks(svg, "seed")) == 2
    assert len(marks(svg, "whisker")) == 1
    texts = ["".join(node.itertext()) for node in marks(svg, "label")]
    assert texts == ["none", "<b>", "se"]
    assert "moved apart" not in svg


def test_costs_that_hardly_differ_do_not_seem_to_differ():
    svg = scatter([Point("a", 3.000e8, 80), Point("b", 3.001e8, 80.01)])
    (x0, x1), (y0, y1) = ([float(node.get(key)) for node in marks(svg, "point")] for key in ("cx", "cy"))
    assert 10 < x1 - x0 < 20  # side by side, no more
    assert abs(y1 - y0) < 10
    assert "points at nearly one cost are moved apart" in svg


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=90),
            st.sampled_from([0.0, 1e6, 3e8, 3.001e8, 3.2e8, 4e9]),
            st.floats(0, 100),
            st.floats(0, 20),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([350, 760]),
)
@settings(max_examples=25, deadline=None)
def test_no_label_lies_over_another(plans, width):
    points = [Point(text, macs, top1, top1 - half, top1 + half) for text, macs, top1, half in plans]
    svg = scatter(points, width)
    root = ET.fromstring(svg)  # noqa: S314 - ours
    height = float(root.get("height"))
    boxes = []
    for node in marks(svg, "label"):
        spans = list(node)
        widest = max(len(span.text or "") for span in spans) * 6.0  # 12 pixel letters, a little less than ours
        left = float(spans[0].get("x")) - (widest if node.get("text-anchor") == "end" else 0)
        boxes.append((left, float(spans[0].get("y")), widest, len(spans) * 15.0))
    assert len(boxes) == len(points)
    for x, y, wide, high in boxes:
        assert x >= 0
        assert x + wide <= width
        assert y >= 0
        assert y - 12 + high <= height
    for (x, y, wide, high), (u, v, other_wide, other_high) in itertools.combinations(boxes, 2):
        assert x + wide <= u or u + other_wide <= x or y + high <= v + 0.1 or v + other_high <= y + 0.1


def touch(one, other):
    """Whether two rectangles share more than an edge."""
    across = one.left < other.right and other.left < one.right
    return across and one.top < other.bottom and other.top < one.bottom


def holds(frame, box):
    """Whether a rectangle lies inside another one."""
    across = frame.left <= box.left and box.right <= frame.right
    return across and frame.top <= box.top and box.bottom <= frame.bottom


def test_labels_keep_off_the_ink():
    frame, ink = Box(0, 0, 300, 200), [Box(95, 0, 105, 200), Box(105, 90, 300, 110)]
    found = labels([((100, 100), "a plan"), ((100, 100), "another plan")], ink, frame, 20)
    boxes = [box for box, _ in found]
    assert not any(touch(box, other) for box in boxes for other in ink)
    assert not touch(boxes[0], boxes[1])
    assert all(holds(frame, box) for box in boxes)


def test_no_leading_line_goes_through_a_label():
    frame = Box(0, 0, 400, 300)
    spots = [((300.0 + 13 * k, 150.0), f"plan {k} with words") for k in range(6)]
    found = labels(spots, [Box(x - 6, 60, x + 6, 240) for (x, _), _ in spots], frame, 20)
    ends = [lead(box, x, y) for ((x, y), _), (box, _) in zip(spots, found, strict=True)]
    assert any(ends)
    for index, (((x, y), _), end) in enumerate(zip(spots, ends, strict=True)):
        for k in range(50 if end else 0):
            u, v = x + (end[0] - x) * k / 50, y + (end[1] - y) * k / 50
            spot = Box(u - 0.1, v - 0.1, u + 0.1, v + 0.1)
            assert not any(touch(spot, box) for other, (box, _) in enumerate(found) if other != index)


def test_no_room():
    assert labels([((5, 5), "a plan")], [], Box(0, 0, 10, 10), 20) is None


@pytest.mark.parametrize("count", [1, 40])
def test_many_plans_at_one_cost_end(count):
    points = [Point(f"ulsam(groups=4) after blocks.{k}", 3e8, 80 + k % 3, 60, 100) for k in range(count)]
    assert len(marks(scatter(points, 350), "label")) == count
