"""Paired differences: coverage by simulation; bootstrap, McNemar's test and Holm's correction: known values."""

import itertools
import math

import numpy as np
import pytest
import torch

from foveate.studies.comparison.statistics import (
    Difference,
    bootstrap_interval,
    difference_of,
    half_width,
    holm,
    mcnemar,
    one_sided_p,
    p_text,
    paired,
    paired_difference,
)


def simulate(generator, seeds, images, effect, seed_spread):
    p = torch.rand(images, generator=generator)
    shift = effect + seed_spread * torch.randn(seeds, 1, generator=generator)
    baseline = torch.rand(seeds, images, generator=generator) < p
    plan = torch.rand(seeds, images, generator=generator) < (p + shift).clamp(0, 1)
    return plan, baseline


@pytest.mark.parametrize("plans", [1, 5])
@pytest.mark.parametrize("seeds,seed_sd", [(2, 0.0), (2, 4.0), (3, 1.5), (3, 4.0)])
def test_of_plans_that_do_nothing_any_has_a_verdict_in_one_comparison_of_twenty(simulation, plans, seeds, seed_sd):
    # Welch's and Satterthwaite's degrees of freedom with each plan's own variance fail: up to a third of comparisons.
    world = simulation.World(plans, seed_sd, images=200)
    found = paired(world.right(world.scores(1000, seeds)))
    assert (simulation.verdicts(found) != 0).any(1).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_plan_that_is_worse_by_the_margin_is_seldom_called_not_worse(simulation):
    world = simulation.World(5, 1.5, images=200)
    found = paired(world.right(world.scores(1000, 3), [4.0] * 5))
    assert simulation.not_worse(found, margin=4.0).any(1).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_by_hand():
    # Two seeds, four images, one plan; d = [[1, 0, 0, 0], [1, 1, -1, 0]].
    base = np.array([[0, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
    plan = np.array([[1, 1, 1, 0], [1, 1, 0, 1]], dtype=bool)
    found = paired(np.stack([base, plan]))
    # Means of images 1, 1/2, -1/2, 0; of seeds both 1/4; 4 in squares is 1/2 of the mean, 2.5 of images, 0 of seeds.
    rest = (4 - 8 / 16 - (2 * 1.5 - 0.5) - 0) / (1 * 3)
    assert found.mean == pytest.approx([0.25])
    assert found.single == pytest.approx([0])
    assert found.rest == pytest.approx([rest / 4])
    assert found.image == pytest.approx([((1.5 - 0.25) / 3 - rest / 2 + 2 / 4) / 4])
    # No variance of seeds was seen, so that of what is left stands for it.
    t = 3.182446
    assert half_width(found, 0.05) == pytest.approx([t * math.sqrt(rest / 8 + found.image[0])], rel=1e-6)


def test_the_variance_of_seeds_is_pooled_over_plans():
    # All images alike: the accuracies of the runs are 0 or 1, and their interaction can be worked out by hand.
    runs = np.array([[0, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=bool)
    found = paired(np.repeat(runs[:, :, None], 50, axis=2))
    table = runs - runs.mean(1, keepdims=True) - runs.mean(0, keepdims=True) + runs.mean()
    pooled = 2 * (table**2).sum() / (2 * 2)
    own = [np.var([1, 1, 0], ddof=1), np.var([0, 1, 0], ddof=1)]
    assert found.single == pytest.approx([max(pooled, own[0]), max(pooled, own[1])])
    assert found.rest == pytest.approx([0, 0], abs=1e-12)


def test_one_image_is_no_evidence_however_many_seeds():
    d = paired_difference(torch.ones(10, 1, dtype=torch.bool), torch.zeros(10, 1, dtype=torch.bool))
    assert d.p > 0.2
    assert (d.low, d.high) == (-100, 100)


def test_without_a_difference_the_interval_is_that_of_the_rule_of_three():
    correct = torch.ones(3, 1000, dtype=torch.bool)
    d = paired_difference(correct, correct)
    assert d.mean == 0
    assert d.high == -d.low == pytest.approx(100 * 1.9623 * math.sqrt(2) / 1000, rel=1e-3)


def test_one_sided_p_is_where_the_interval_ends():
    plan, base = simulate(torch.Generator().manual_seed(2), 4, 300, 0.1, 0.02)
    found = paired(np.stack([base, plan]))
    for alpha in (0.3, 0.05, 1e-3):
        end = float(found.mean[0] - half_width(found, 2 * alpha)[0])
        assert one_sided_p(found, 0, end) == pytest.approx(alpha, rel=1e-6)
        assert one_sided_p(found.negative, 0, -end) == pytest.approx(1 - alpha, rel=1e-6)
    assert one_sided_p(found, 0, float(found.mean[0])) == pytest.approx(0.5)
    assert difference_of(found, 0) == paired_difference(plan, base)
    d = paired_difference(plan, base)
    assert (d.p < 0.05) == (not d.low <= 0 <= d.high)


def test_a_large_difference_is_found_and_its_sign_is_right():
    generator = torch.Generator().manual_seed(0)
    plan, baseline = simulate(generator, 4, 400, 0.25, 0.01)
    d = paired_difference(plan, baseline)
    assert d.low > 0
    assert paired_difference(baseline, plan).high < 0
    assert d.mean == pytest.approx(100 * (plan.double().mean() - baseline.double().mean()).item())


def test_the_paired_t_test_where_images_do_not_matter():
    # Every image is alike, so only seeds are left: R's t.test(c(1, 0, 1, 1)) gives t = 3, df = 3, p = 0.05766889.
    plan = torch.tensor([1, 0, 1, 1], dtype=torch.bool)[:, None].expand(4, 500)
    d = paired_difference(plan, torch.zeros_like(plan))
    # But for the two images that are added for small samples.
    assert d.p == pytest.approx(0.05766889, abs=2e-4)
    assert (d.low, d.high) == (pytest.approx(75 - 79.5611574, abs=0.01), 100)


def test_equal_runs_are_no_evidence():
    correct = torch.tensor([[True, False, True]]).repeat(2, 1)
    d = paired_difference(correct, correct)
    assert (d.mean, d.p) == (0, 1)
    assert d.low < 0 < d.high
    assert bootstrap_interval(correct, correct) == (0, 0)
    assert mcnemar(correct, correct).p == 1


def test_more_images_narrow_the_interval():
    def width(images):
        d = paired_difference(*simulate(torch.Generator().manual_seed(1), 3, images, 0.0, 0.0))
        return d.high - d.low

    assert width(4000) < width(100) / 3


def test_prints_as_points_with_an_interval():
    assert str(Difference(1.24, -0.31, 2.79, 3, 0.1)) == "+1.2 [-0.3, +2.8]"


def test_bootstrap_is_that_of_every_possible_draw():
    # 2 seeds and 3 images: all 4 x 27 draws can be listed.
    plan = torch.tensor([[True, True, False], [True, False, False]])
    base = torch.tensor([[False, True, True], [False, False, False]])
    d = plan.double() - base.double()
    draws = [
        d[list(s)][:, list(i)].mean().item()
        for s in itertools.product(range(2), repeat=2)
        for i in itertools.product(range(3), repeat=3)
    ]
    # Between the quantiles a little to the left and right, as the distribution is one of steps.
    ends = 100 * torch.tensor(draws).quantile(torch.tensor([0.02, 0.03, 0.97, 0.98]))
    low, high = bootstrap_interval(plan, base, draws=40_000)
    assert ends[0] - 1e-4 <= low <= ends[1] + 1e-4
    assert ends[2] - 1e-4 <= high <= ends[3] + 1e-4


def test_bootstrap_of_one_seed_is_over_images():
    generator = torch.Generator().manual_seed(3)
    plan, base = simulate(generator, 1, 2000, 0.05, 0.0)
    d = paired_difference(plan, base)
    low, high = bootstrap_interval(plan, base)
    assert (low, high) == (pytest.approx(d.low, abs=0.2), pytest.approx(d.high, abs=0.2))


def test_bootstrap_repeats_itself():
    plan, base = simulate(torch.Generator().manual_seed(3), 3, 500, 0.05, 0.02)
    assert bootstrap_interval(plan, base) == bootstrap_interval(plan, base)


def discordant(better, worse):
    plan = torch.tensor([[True] * better + [False] * worse + [True] * 5])
    return mcnemar(plan, torch.tensor([[False] * better + [True] * worse + [True] * 5]))


# R: binom.test(better, better + worse)$p.value; the last by the normal limit with continuity correction, 2 Phi(-z).
@pytest.mark.parametrize(
    "better,worse,p,within",
    [
        (0, 0, 1.0, 1e-12),
        (5, 5, 1.0, 1e-12),
        (1, 9, 22 / 1024, 1e-12),
        (0, 6, 2 / 64, 1e-12),
        (12, 3, 2 * 576 / 2**15, 1e-12),  # 1 + 15 + 105 + 455 ways
        (5200, 4900, math.erfc((300 - 1) / math.sqrt(10100) / math.sqrt(2)), 2e-4),
    ],
)
def test_mcnemar(better, worse, p, within):
    found = discordant(better, worse)
    assert (found.better, found.worse) == (better, worse)
    assert found.p == pytest.approx(p, abs=within)


def test_holm():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03 0.06 0.06 0.02.
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(found) == ["a", "b", "c", "d"]
    assert list(found.values()) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.2}) == {"a": 0.2}


@pytest.mark.parametrize(
    "p,words", [(0.0, "p < 0.001"), (0.0123, "p = 0.012"), (0.0501, "p = 0.050"), (0.5, "p = 0.50")]
)
def test_p_text(p, words):
    assert p_text("p", p) == words


def test_a_row_that_is_there_twice_narrows_no_interval():
    # The same network under two names, or a plan that changes nothing, says nothing new of the variance of seeds.
    plan, base = simulate(torch.Generator().manual_seed(3), 2, 300, 0.1, 0.05)
    once, twice = (paired(np.stack(rows)) for rows in ([base, plan], [base, plan, plan, base]))
    assert (once.pooled, twice.pooled, twice.plans) == (1, 1, 3)
    assert half_width(twice, 0.05)[:2] == pytest.approx([float(half_width(once, 0.05)[0])] * 2)
    assert difference_of(twice, 0) == difference_of(once, 0)
    several = paired(np.stack([[base, plan, plan], [base, plan, base]]))  # of two tables a row counts if one needs it
    assert several.pooled == 2
    alone = paired(np.stack([base, base]))
    assert (alone.pooled, alone.single[0]) == (1, 0)
