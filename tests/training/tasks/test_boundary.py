"""Boundary IoU: against erosions one by one, by hand, and what is reported of it when it is asked for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.data.segmentation import IGNORE
from foveate.errors import FoveateError
from foveate.training.tasks.boundary import boundary_counts, boundary_pixels, boundary_width


def eroded(mask):
    """One step: a pixel stays if it and its eight neighbours are in the mask; outside the image nothing is."""
    height, width = mask.shape
    return torch.tensor(
        [
            [
                0 < y < height - 1 and 0 < x < width - 1 and bool(mask[y - 1 : y + 2, x - 1 : x + 2].all())
                for x in range(width)
            ]
            for y in range(height)
        ]
    ).view(height, width)


@given(
    st.integers(0, 10**6), st.integers(1, 14), st.integers(1, 14), st.integers(1, 4), st.sampled_from([0.5, 0.9, 1.0])
)
def test_the_pixels_at_a_contour_are_those_that_erosions_take_away(seed, height, width, distance, share):
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share
    inner = mask
    for _ in range(distance):
        inner = eroded(inner)
    assert torch.equal(boundary_pixels(mask[None], distance)[0], mask & ~inner)


@given(st.integers(0, 10**6))
def test_counts_are_those_of_the_definition(seed):
    draw = torch.Generator().manual_seed(seed)
    predicted, target = (torch.randint(0, 3, (4, 6), generator=draw) for _ in range(2))
    predicted, target = (of.repeat_interleave(20, 0).repeat_interleave(20, 1) for of in (predicted, target))
    target[:9, :31] = IGNORE
    found = boundary_counts(predicted, target, 4)
    distance = round(0.02 * math.hypot(80, 120))
    for label in range(4):
        sides = []
        for mask in ((predicted == label) & (target != IGNORE), target == label):
            inner = mask
            for _ in range(distance):
                inner = (
                    -torch.nn.functional.max_pool2d(-torch.nn.functional.pad(inner[None].float(), (1, 1, 1, 1)), 3, 1)[
                        0
                    ]
                    > 0.5
                )
            sides.append(mask & ~inner)
        own, true = sides
        assert found[label].tolist() == [int((own & true).sum()), int(own.sum()), int(true.sum())]


def test_by_hand():
    assert [boundary_width(*size) for size in ((10, 10), (30, 40), (300, 400), (60, 45))] == [1, 1, 10, 2]
    target = torch.zeros(30, 40, dtype=torch.int64)
    target[5:15, 10:30] = 1  # its contour has 2 * 10 + 2 * 18 pixels
    shifted = target.roll(1, 1)
    counts = boundary_counts(shifted, target, 2)
    assert counts[1].tolist() == [2 * 19, 56, 56]  # its first and last row overlap but for a pixel
    assert torch.equal(boundary_counts(target, target, 2)[:, 0], boundary_counts(target, target, 2)[:, 2])
    everything = torch.full((30, 40), IGNORE)
    assert boundary_counts(target, everything, 2).sum() == 0


def test_it_is_reported_when_it_is_asked_for(new_net, data, folder, capsys, tmp_path):
    model = new_net()
    plain = fv.evaluate(model, data)
    assert plain.boundary_counts is plain.boundary_miou is None
    assert "boundary" not in str(plain.to_dict())
    found = fv.evaluate(model, data, boundary=True)
    assert found.miou == plain.miou
    assert torch.equal(found.counts, plain.counts)
    assert found.boundary_counts.shape == (3, 3, 3)
    one_by_one = fv.evaluate(model, data, boundary=True, flip=True)
    assert one_by_one.boundary_counts.shape == (3, 3, 3)
    rows = [row["boundary_iou"] for row in found.per_class()]
    assert found.boundary_miou == pytest.approx(
        sum(row for row in rows if row is not None) / sum(row is not None for row in rows)
    )
    assert found.to_dict()["boundary_miou"] == found.boundary_miou
    assert f"boundary mIoU {100 * found.boundary_miou:.1f}%" in found.headline
    assert "boundary mIoU" in found._repr_html_()
    with pytest.raises(FoveateError, match="boundary= is for images with label maps"):
        fv.evaluate(model, folder / "images", boundary=True)
