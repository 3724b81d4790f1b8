"""Verdicts in words say what the numbers allow, and no more."""

import csv

import numpy as np
import pytest
import torch

import foveate as fv
from foveate.errors import FoveateError
from foveate.studies.comparison.analysis import FEWEST_IMAGES, analyse
from foveate.studies.comparison.margin import MarginTest
from foveate.studies.comparison.statistics import accuracy, difference_of, paired


def runs(generator, seeds, shift, images=1500, spread=0.004):
    """Plans that are right where the baseline is, but for noise, and better by ``shift``."""
    hard = torch.rand(images, generator=generator)
    moved = shift + spread * torch.randn(seeds, 1, generator=generator)
    return 0.6 * hard + 0.4 * torch.rand(seeds, images, generator=generator) < 0.5 + moved


@pytest.fixture(scope="module")
def correct():
    generator = torch.Generator().manual_seed(1)
    shifts = {"none": 0.0, "good": 0.1, "bad": -0.1, "same": 0.0}
    return {label: runs(generator, 5, shift) for label, shift in shifts.items()}


def test_each_plan_against_the_baseline(correct):
    found = analyse(correct, "none")
    assert [a.label for a in found.rows] == ["good", "bad", "same"]
    assert [a.sign for a in found.rows] == [1, -1, 0]
    every = paired(np.stack([correct[label] for label in ("none", "good", "bad", "same")]))
    for k, a in enumerate(found.rows):
        label = a.label
        assert a.difference == difference_of(every, k)
        assert a.per_seed == pytest.approx(
            [x - y for x, y in zip(accuracy(correct[label]), accuracy(correct["none"]), strict=True)]
        )
        assert sum(a.per_seed) / 5 == pytest.approx(a.difference.mean)
        assert a.bootstrap[0] < a.difference.mean < a.bootstrap[1]
        assert 100 * (a.mcnemar.better - a.mcnemar.worse) / 7500 == pytest.approx(a.difference.mean)
        assert a.power.alpha == pytest.approx(0.05 / 3)
        assert a.p_holm >= a.difference.p


def test_words(correct):
    found = analyse(correct, "none")
    good, bad, same = (found[label] for label in ("good", "bad", "same"))
    d = good.difference
    assert good.verdict.startswith(f"better by {d.mean:.1f} points [{d.low:.1f}, {d.high:.1f}], p_Holm ")
    d = bad.difference  # both ends positive: "worse by" has said the sign
    assert bad.verdict.startswith(f"worse by {-d.mean:.1f} points [{-d.high:.1f}, {-d.low:.1f}], p_Holm ")
    d = same.difference
    assert same.verdict.startswith(f"no evidence of a difference: {d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}], ")
    assert same.power_text.startswith(
        f"5 seeds and 1,500 images show {same.power.smallest:.1f} points or more with 80% power; "
    )
    assert f"{abs(d.mean):.1f} points" in same.power_text


def test_what_is_evidence_alone_may_be_none_among_many(correct):
    generator = torch.Generator().manual_seed(5)
    plans = {"none": runs(generator, 4, 0.0), "maybe": runs(generator, 4, 0.045)}
    alone = analyse(plans, "none")["maybe"]
    assert alone.sign == 1
    many = plans | {f"plan {k}": runs(generator, 4, 0.0) for k in range(40)}
    among = analyse(many, "none")["maybe"]
    assert among.difference.mean == alone.difference.mean
    assert among.difference.p < 0.05
    assert among.sign == 0
    assert "after Holm's correction for 41 plans" in among.verdict


@pytest.mark.parametrize(
    "seeds,images,labels,obstacle",
    [
        (1, 800, None, "one seed, at least two are needed"),
        (5, 1, None, "one validation image, at least 10 are needed"),
        (5, FEWEST_IMAGES - 1, None, "9 validation images, at least 10 are needed"),
        (5, 40, [3] * 40, "all images are of one class"),
    ],
)
def test_where_there_is_no_verdict_it_is_said_everywhere(tmp_path, seeds, images, labels, obstacle):
    right = {"none": np.zeros((seeds, images)), "good": np.ones((seeds, images))}
    whole = analyse(right, "none", 1.0, labels=labels)
    found = whole["good"]
    assert (found.sign, found.p_holm, found.power, found.margin) == (None, None, None, None)
    assert found.verdict.startswith(f"no verdict: {obstacle}: +100.0 points [")
    with whole.to_csv(tmp_path / "found.csv").open() as file:
        base, row = csv.DictReader(file)
    assert base["verdict"] == "baseline"
    assert row["verdict"] == f"no verdict: {obstacle}"
    for name in ("p", "p_holm", "smallest_difference", "seeds_needed", "margin_verdict"):
        assert row[name] == ""


def test_one_seed_is_over_images_alone():
    generator = torch.Generator().manual_seed(0)
    found = analyse({"none": runs(generator, 1, 0.0), "good": runs(generator, 1, 0.3)}, "none")["good"]
    assert found.verdict.endswith("over these images alone")
    assert found.power_text.startswith("one seed")
    assert found.difference.low > 0


def test_equal_runs():
    right = torch.rand(3, 5000, generator=torch.Generator().manual_seed(0)) < 0.5
    found = analyse({"none": right, "same": right.clone()}, "none", margin=0.5)["same"]
    assert found.verdict == (
        "no evidence of a difference: +0.0 points [-0.1, +0.1], p_Holm = 1.00; "
        "equivalent within 0.5 points (one-sided p < 0.001)"
    )


def test_margin():
    # One plan a little worse, one much worse, one equal; margins around them.
    generator = torch.Generator().manual_seed(3)
    shifts = {"none": 0.0, "equal": 0.0, "little": -0.02, "much": -0.2}
    correct = {label: runs(generator, 5, shift, images=4000, spread=0.001) for label, shift in shifts.items()}
    words = {margin: [row.margin.word for row in analyse(correct, "none", margin).rows] for margin in (0.1, 8.0)}
    assert words == {0.1: ["undecided", "worse", "worse"], 8.0: ["equivalent", "equivalent", "worse"]}
    much = analyse(correct, "none", 8.0)["much"]
    assert much.verdict.endswith("; worse by more than 8 points (one-sided p < 0.001)")
    better = analyse({"none": correct["much"], "good": correct["none"]}, "none", 1)["good"]
    assert better.margin.word == "not worse"
    assert better.verdict.endswith("; not worse by more than 1 point (one-sided p < 0.001)")


def test_the_strongest_claim_and_no_other():
    assert MarginTest(1, 0.01, 0.02, 0.9).word == "equivalent"
    assert MarginTest(1, 0.01, 0.05, 0.9).word == "not worse"
    assert MarginTest(1, 0.05, 0.05, 0.9).word == "undecided"
    assert MarginTest(1, 1.0, 1.0, 0.04).word == "worse"


def test_margin_is_corrected_for_the_number_of_plans(correct):
    alone = analyse({label: correct[label] for label in ("none", "same")}, "none", 3.0)["same"].margin
    twice = analyse({"none": correct["none"], "same": correct["same"], "again": correct["same"]}, "none", 3.0)
    assert twice["same"].margin == twice["again"].margin
    assert twice["same"].margin.p_not_worse > alone.p_not_worse


def test_it_is_public_and_takes_any_kind_of_array(correct, tmp_path):
    found = fv.analyse({label: right.numpy() for label, right in correct.items()}, margin=2.0)
    assert found.verdicts == analyse(correct, "none", 2.0).verdicts
    lists = fv.analyse({label: right.int().tolist() for label, right in correct.items()}, "none", 2.0)
    assert str(lists) == str(found)
    for row in found.rows:
        assert f"{row.label}: {row.verdict}\n  {row.power_text}" in str(found)
    with found.to_csv(tmp_path / "new" / "found.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["plan"] for line in lines] == ["none", "good", "bad", "same"]
    assert [line["margin_verdict"] for line in lines[1:]] == [row.margin.word for row in found.rows]
    assert float(lines[1]["p_holm"]) == pytest.approx(found["good"].p_holm, rel=1e-4)


RIGHT = np.ones((2, 20), dtype=bool)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"correct": {"none": RIGHT, "se": RIGHT}, "baseline": "nine"}, "baseline='nine'.*did you mean 'none'"),
        ({"correct": {"none": RIGHT}}, "at least one plan beside those of 'none'"),
        ({"correct": {"none": RIGHT, "se": RIGHT[:1]}}, r"one shape.*'none' \(2, 20\), 'se' \(1, 20\)"),
        ({"correct": {"none": RIGHT, "se": RIGHT[0]}}, r"'se' has the shape \(20,\): give \(seeds, images\)"),
        ({"correct": {"none": RIGHT, "se": RIGHT[:, :0]}}, "at least one of each"),
        ({"correct": {"none": RIGHT, "se": np.full((2, 20), 7)}}, "'se' holds int64 values: give true"),
        ({"correct": {"none": RIGHT, "se": RIGHT}, "margin": 0}, "margin=0: give points"),
        ({"correct": {"none": RIGHT, "se": RIGHT}, "margin": "1"}, "margin='1': give points"),
        ({"correct": {"none": RIGHT, "se": RIGHT}, "margin": float("nan")}, "margin=nan: give points"),
        ({"correct": {"none": RIGHT, "se": RIGHT}, "labels": [0, 1]}, r"labels: \(2,\) classes for the 20 images"),
    ],
)
def test_what_cannot_be_analysed(arguments, message):
    with pytest.raises(FoveateError, match=message):
        fv.analyse(**arguments)


def test_a_plan_that_is_not_there(correct):
    with pytest.raises(FoveateError, match="no plan 'gold'.*did you mean 'good'"):
        fv.analyse(correct)["gold"]
