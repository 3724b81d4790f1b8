"""Differences in mIoU: exact where they must be, and like resampling."""

import numpy as np
import pytest
import torch

from foveate.errors import FoveateError
from foveate.studies.comparison.analysis import analyse_runs
from foveate.studies.comparison.measure import MAP, MIOU
from foveate.studies.comparison.miou import (
    image_values,
    jackknife_values,
    miou_differences,
    paired_values,
    seed_values,
)
from foveate.studies.comparison.statistics import paired
from foveate.training.tasks.segmentation_metrics import class_ious


def counts(seed, seeds=3, images=60, classes=4):
    random = np.random.default_rng(seed)
    actual = random.integers(0, 400, (1, images, classes)) * (random.random((1, images, classes)) < 0.7)
    right = random.binomial(np.broadcast_to(actual, (seeds, images, classes)), 0.7)
    predicted = right + random.integers(0, 90, right.shape)
    return torch.from_numpy(np.stack([right, predicted, np.broadcast_to(actual, right.shape)], -1))


def test_the_mean_of_the_values_is_the_miou():
    found = counts(0)
    found[..., 3, :] = 0  # a class that is nowhere
    for seed in range(3):
        miou = class_ious(found[seed].sum(0)).nanmean()
        assert image_values(found)[seed].mean() == pytest.approx(float(miou), rel=1e-12)


def test_their_spread_is_that_of_resampled_images():
    found, random = counts(1, seeds=1)[0], np.random.default_rng(0)
    drawn = torch.from_numpy(random.multinomial(60, np.full(60, 1 / 60), 4000)).double()
    resampled = torch.einsum("bn,nkc->bkc", drawn, found.double())
    bootstrap = class_ious(resampled).nanmean(-1).std()
    linear = image_values(found).std(correction=0) / 60**0.5
    assert float(linear) == pytest.approx(float(bootstrap), rel=0.05)


def test_the_jackknife_by_leaving_out_each_image():
    found = counts(5, images=12)
    found[..., 3, :] = 0
    found[:, :11, 2] = 0  # a class that one image alone has
    for seed in range(3):
        whole = float(class_ious(found[seed].sum(0)).nanmean())
        without = [float(class_ious(found[seed].sum(0) - found[seed, i]).nanmean()) for i in range(12)]
        wanted = [whole + 11 * (np.mean(without) - one) for one in without]
        assert jackknife_values(found)[seed].tolist() == pytest.approx(wanted)
    assert torch.equal(seed_values(found), image_values(found))
    assert torch.equal(seed_values(found[:1]), jackknife_values(found[:1]))
    assert torch.equal(jackknife_values(found[:, :1]), image_values(found[:, :1]))


def test_the_parts_are_those_of_right_and_wrong_images():
    random = np.random.default_rng(2)
    right = random.random((3, 4, 50)) < 0.7
    ours, theirs = paired_values(torch.from_numpy(right).double()), paired(right)
    for part in ("mean", "single", "rest"):
        assert np.allclose(getattr(ours, part), getattr(theirs, part)), part
    assert np.allclose(ours.image, np.maximum(theirs.image - 2 / 50**2, 0))


def test_differences():
    base = counts(3)
    better = base.clone()
    better[..., 0] = torch.minimum(base[..., 2], base[..., 0] + (base[..., 2] - base[..., 0]) // 2)
    better[..., 1] = base[..., 1] - base[..., 0] + better[..., 0]
    found = miou_differences({"none": base, "better": better, "same": base})
    gained = class_ious(better.sum(1)).nanmean(-1).mean() - class_ious(base.sum(1)).nanmean(-1).mean()
    assert found["better"].mean == pytest.approx(100 * float(gained))
    assert 0 < found["better"].low < found["better"].mean < found["better"].high
    assert found["better"].p < 0.001
    assert found["same"].mean == 0
    assert found["same"].p == 1
    with pytest.raises(FoveateError, match="no counts of that name"):
        miou_differences({"a": base, "b": base})
    with pytest.raises(FoveateError, match="need one shape"):
        miou_differences({"none": base, "b": base[:, :5]})


def test_a_row_that_is_there_twice_narrows_no_interval():
    none, plan = (counts(seed) for seed in (0, 1))
    once = miou_differences({"none": none, "a": plan})
    twice = miou_differences({"none": none, "a": plan, "again": plan, "nothing": none})
    assert twice["a"] == twice["again"] == once["a"]


@pytest.mark.parametrize("plans", [1, 3])
def test_equal_runs_are_no_evidence_that_plans_are_equivalent(plans):
    """Networks that have learned nothing agree in every seed and image: no variance, and nothing that it says."""
    background = torch.zeros(3, 20, 2, 3, dtype=torch.int64)
    background[..., 0, :], background[..., 1, :] = torch.tensor([90, 100, 90]), torch.tensor([0, 0, 10])
    no_box = torch.zeros(3, 20, 100, 8)
    no_box[..., 5] = -1
    objects = torch.ones(20, 2, dtype=torch.int64)
    for measure, same, labels in ((MIOU, background, torch.empty(0)), (MAP, no_box, objects)):
        runs = {"none": same} | {f"plan {k}": same.clone() for k in range(plans)}
        for row in analyse_runs(measure, runs, labels, "none", margin=1.0).rows:
            assert row.sign is None
            assert row.margin is None
            assert row.power is None
            assert "every run gives the same on every image" in row.verdict
    different = {"none": counts(0), "se": counts(0), "other": counts(1)}
    assert analyse_runs(MIOU, different, torch.empty(0), "none")["se"].sign == 0


def test_the_bootstrap_of_label_maps_that_hardly_count():
    """A draw without a pixel that counts has an mIoU of 0, as a data set has."""
    found = counts(0, images=12)
    found[:, 2:] = 0
    other = counts(1, images=12)
    other[:, 2:] = 0
    (row,) = analyse_runs(MIOU, {"none": found, "se": other}, torch.empty(0), "none").rows
    assert all(map(np.isfinite, row.bootstrap))
