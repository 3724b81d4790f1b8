"""Verdicts in words say what the numbers allow, and no more."""

import pytest
import torch

from foveate.studies.comparison.analysis import analyse, p_words
from foveate.studies.comparison.statistics import accuracy, paired_difference


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
    assert list(found) == ["good", "bad", "same"]
    assert [a.sign for a in found.values()] == [1, -1, 0]
    for label, a in found.items():
        assert a.difference == paired_difference(correct[label], correct["none"])
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
    assert same.outlook.startswith(f"5 seeds see {same.power.smallest:.1f} points or more with 80% power; ")
    assert same.outlook.endswith(f"would be needed to see {abs(d.mean):.1f} points")


def test_what_is_evidence_alone_may_be_none_among_many(correct):
    generator = torch.Generator().manual_seed(5)
    plans = {"none": runs(generator, 4, 0.0), "maybe": runs(generator, 4, 0.045)}
    alone = analyse(plans, "none")["maybe"]
    assert alone.sign == 1
    many = plans | {f"plan {k}": runs(generator, 4, 0.0) for k in range(12)}
    among = analyse(many, "none")["maybe"]
    assert among.difference == alone.difference
    assert among.sign == 0
    assert "after Holm's correction for 13 plans" in among.verdict


def test_one_seed_is_said():
    generator = torch.Generator().manual_seed(0)
    found = analyse({"none": runs(generator, 1, 0.0), "good": runs(generator, 1, 0.3)}, "none")["good"]
    assert found.sign == 1
    assert found.verdict.endswith("(one seed: its luck is not in the interval)")
    assert found.power is None
    assert found.outlook.startswith("one seed")


def test_equal_runs():
    right = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) < 0.5
    found = analyse({"none": right, "same": right.clone()}, "none")["same"]
    assert found.verdict == "no evidence of a difference: +0.0 points [+0.0, +0.0], p_Holm = 1.00"
    assert "nothing to say" in found.outlook


@pytest.mark.parametrize(
    "p,words", [(0.0, "p < 0.001"), (0.0123, "p = 0.012"), (0.0501, "p = 0.050"), (0.5, "p = 0.50")]
)
def test_p_words(p, words):
    assert p_words("p", p) == words
