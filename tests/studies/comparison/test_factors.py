"""What varies in a family: factors, their effects where the truth is known, and tests that hold their level."""

import csv
import json

import numpy as np
import pytest
import timm
import torch

import foveate as fv
from foveate.errors import FoveateError
from foveate.studies.comparison.distributions import f_quantile, f_tail, t_quantile
from foveate.studies.comparison.factors.analysis import analyse_factors
from foveate.studies.comparison.factors.contrasts import contrasts, joint_p, joint_parts, rejects
from foveate.studies.comparison.factors.levels import FamilyRows, factors_of, level_weights
from foveate.studies.comparison.statistics import half_width, paired


def rows_of(text):
    return FamilyRows.of(fv.Family.parse(text), "none")


def described(text):
    return {factor.name: (factor.levels, factor.ordered) for factor in factors_of(rows_of(text), "none")}


def test_factors_of_a_family():
    assert described("ulsam(groups=16|1|4) after|replacing a|b") == {
        "groups": (("1", "4", "16"), True),
        "verb": (("after", "replacing"), False),
        "sites": (("a", "b"), False),
    }
    assert described("se|none after a|b, c; cbam|bam after d") == {
        "mechanism (placement 1)": (("se", "none"), False),
        "sites (placement 1)": (("a", "b, c"), False),
        "mechanism (placement 2)": (("cbam", "bam"), False),
    }
    assert described("se|se(reduction=4) after a") == {"reduction": (("default", "4"), False)}
    assert described("se(reduction=4|8)|ulsam(groups=1|2) after a") == {
        "mechanism": (("se", "ulsam"), False),
        "se reduction": (("4", "8"), True),
        "ulsam groups": (("1", "2"), True),
    }
    assert described("se replacing some of a, b") == {"at a": (("yes", "no"), False), "at b": (("no", "yes"), False)}
    assert described("se(bias=True|False) after a") == {"bias": (("True", "False"), False)}


def exact_effects(text, truth):
    """The effects that the weights make of accuracies that are a sum over levels."""
    rows = rows_of(text)
    factors = factors_of(rows, "none")
    labels = ["none", *(label for label in rows.labels if label != "none")]
    accuracy = np.array([sum(truth[f.name][f.of[label]] for f in factors if label in f.of) for label in labels])
    found = {}
    for factor in factors:
        weights = level_weights(factor, [other for other in factors if other is not factor], labels)
        assert np.abs(weights.sum(1)).max() < 1e-9
        found[factor.name] = dict(zip(factor.levels, weights @ accuracy, strict=True))
    return found


def test_effects_of_a_sum_are_its_terms():
    truth = {
        "groups": {"1": 0.5, "2": 0.1, "4": -0.3},
        "verb": {"after": 0.2, "replacing": -0.4},
        "sites": {"a": 0.0, "b": 0.7},
    }
    found = exact_effects("ulsam(groups=1|2|4) after|replacing a|b", truth)
    for name, of_levels in truth.items():
        middle = np.mean(list(of_levels.values()))
        assert found[name] == pytest.approx({level: value - middle for level, value in of_levels.items()})


def test_sites_of_some_of_are_told_apart_though_they_are_not_balanced():
    # Without the empty set each site comes more often with the others absent; a mean over plans would be wrong.
    truth = {f"at {site}": {"yes": effect, "no": 0.0} for site, effect in zip("abc", (0.3, -0.2, 0.9), strict=True)}
    found = exact_effects("se replacing some of a, b, c", truth)
    for site, effect in zip("abc", (0.3, -0.2, 0.9), strict=True):
        assert found[f"at {site}"]["yes"] - found[f"at {site}"]["no"] == pytest.approx(effect)


def test_what_cannot_be_told_is_said():
    factors = factors_of(rows_of("se|cbam after a|b"), "none")
    labels = ["none", "se after a", "cbam after b"]  # as if only these had been run
    few = [type(f)(f.name, f.levels, f.ordered, {k: v for k, v in f.of.items() if k in labels}) for f in factors]
    assert level_weights(few[0], few[1:], labels) is None


@pytest.mark.parametrize(
    "f,first,second,tail",  # scipy.stats.f.sf
    [
        (3.0, 2, 8, 0.10662224073302792),
        (0.5, 7, 100, 0.8325416801853721),
        (40, 3, 6, 0.00023194664731578227),
        (1.2, 16, 2000, 0.2596825484386152),
        (25, 5, 60, 1.5945643924129958e-13),
    ],
)
def test_f_distribution(f, first, second, tail):
    assert f_tail(f, first, second) == pytest.approx(tail, rel=1e-9)
    assert f_quantile(tail, first, second) == pytest.approx(f, rel=1e-6)


def test_f_with_one_degree_is_t_squared():
    assert f_quantile(0.05, 1, 7) == pytest.approx(t_quantile(0.025, 7) ** 2)
    assert f_tail(0, 2, 3) == 1


def drawn(rows, seeds, images, seed_sd, generator, shifts=None):
    """(rows, seeds, images) bool: images differ in difficulty, runs in quality; ``shifts`` are the plans' effects."""
    latent = 0.84 + 0.84 * generator.normal(size=images) + 0.55 * generator.normal(size=(rows, seeds, images))
    latent += seed_sd / 28 * generator.normal(size=(rows, seeds, 1))
    return latent + (0 if shifts is None else np.asarray(shifts)[:, None, None]) > 0


def test_a_contrast_of_two_is_a_paired_difference():
    right = drawn(2, 3, 200, 2, np.random.default_rng(0))
    ours, theirs = contrasts(right, [[-1, 1]]), paired(right)
    for name in ("mean", "single", "rest", "image"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name)), name
    assert half_width(ours, 0.05) == pytest.approx(half_width(theirs, 0.05))


def test_a_row_that_is_there_twice_narrows_no_interval():
    right = drawn(3, 2, 200, 4, np.random.default_rng(5))
    twice = right[[0, 1, 2, 1, 2, 0]]
    once, again = ([[-1, 1, 0], [-1, 0, 1]], [[-1, 1, 0, 0, 0, 0], [-1, 0, 1, 0, 0, 0]])
    assert half_width(contrasts(twice, again), 0.05) == pytest.approx(half_width(contrasts(right, once), 0.05))
    assert joint_p(twice, again) == pytest.approx(joint_p(right, once))


@pytest.mark.parametrize("seeds,seed_sd", [(2, 1.5), (2, 4), (3, 4)])
def test_where_nothing_matters_the_tests_seldom_say_so(seeds, seed_sd):
    generator = np.random.default_rng(seeds)
    equal = np.concatenate([-np.ones((4, 1)), np.eye(4)], 1)
    equal = np.concatenate([np.zeros((4, 1)), equal], 1)
    trend = np.array([[0, -2, -1, 0, 1, 2]]) / 10
    found = np.zeros(2)
    for _ in range(300):
        right = drawn(6, seeds, 300, seed_sd, generator)
        line = contrasts(right, trend)
        found += rejects(joint_parts(right, equal), 0.05), abs(line.mean[0]) > half_width(line, 0.05)[0]
    assert (found / 300 <= 0.075).all()  # 0.05 and two standard deviations of the count


def family_with(shifts, seeds=3, images=2_000):
    rows = rows_of("ulsam(groups=1|2|4|8) after|replacing a|b|c")
    generator = np.random.default_rng(1)
    factors = {factor.name: factor for factor in factors_of(rows, "none")}
    sums = [sum(shifts.get((name, f.of[label]), 0) for name, f in factors.items()) for label in rows.labels]
    right = drawn(1 + len(rows.labels), seeds, images, 0.5, generator, [0, *sums])
    correct = {label: torch.from_numpy(values) for label, values in zip(["none", *rows.labels], right, strict=True)}
    return rows, correct


def test_effects_that_are_there_are_found_and_no_others():
    rows, correct = family_with({("groups", "4"): 0.1, ("groups", "8"): 0.2, ("sites", "b"): 0.3})
    groups, verb, sites = analyse_factors([rows], correct, "none", None)
    assert (groups.test, verb.test, sites.test) == ("trend", "difference", "F")
    assert groups.matters
    assert groups.trend.mean > 0
    assert groups.text.startswith("groups: it matters: trend +")
    assert verb.matters is False
    assert "no evidence that it matters: replacing less after" in verb.text
    assert sites.matters
    assert "highest: b" in sites.text
    assert [level.plans for level in sites.levels] == [8, 8, 8]
    best = sites.levels[1].effect
    assert best.low > 0
    # Level b against the mean of a and c, of the accuracies themselves: the family is balanced.
    top1 = {level.name: level.top1 for level in sites.levels}
    assert best.mean == pytest.approx(top1["b"] - (top1["a"] + top1["c"]) / 2)
    assert all(one.p <= one.p_holm for one in (groups, verb, sites))
    assert [row["level"] for row in groups.as_dicts()] == ["1", "2", "4", "8"]


def test_without_a_verdict_the_reason_is_given():
    rows, correct = family_with({}, seeds=1, images=50)
    for one in analyse_factors([rows], correct, "none", "one seed, at least two are needed"):
        assert one.p is one.p_holm is one.matters is None
        assert "no verdict: one seed" in one.text
        assert all(level.effect is not None for level in one.levels)


def test_the_joint_test_does_not_depend_on_how_the_hypothesis_is_written():
    right = drawn(4, 3, 150, 2, np.random.default_rng(3), [0, 0, 0.2, 0.4])
    ways = [[[0, 1, -1, 0], [0, 1, 0, -1]], [[0, 1, -1, 0], [0, 0, 5, -5]], [[0, -2, 1, 1], [0, 0, 1, -1]]]
    found = [joint_p(right, np.array(way, dtype=float)) for way in ways]
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


FAMILY = "se(reduction=4|8|2)|identity after #0|layer2.0"


@pytest.fixture(scope="module")
def compared(folder, tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    output = tmp_path_factory.mktemp("out") / "grid"
    recipe = fv.Recipe(epochs=0, batch_size=8, image_size=32)
    plans = [FAMILY, "ulsam after layer1.0"]
    data = fv.open_data(folder)
    return model, data, fv.compare(model, plans, data, recipe, seeds=2, output=output, progress=False)


def test_compare_takes_families(compared):
    model, _, found = compared
    first = fv.sites(model, 32)[0].name
    labels = [row.label for row in found.rows]
    assert labels[0] == "none"
    assert labels[1:4] == [f"se(reduction=4) after {first}", "se(reduction=4) after layer2.0", labels[3]]
    assert labels[-1] == "ulsam after layer1.0"
    assert len(labels) == 1 + 8 + 1
    assert [factor.name for factor in found.factors] == ["mechanism", "se reduction", "sites"]
    assert [level.name for level in found.factors[1].levels] == ["2", "4", "8"]


def test_a_family_in_the_tables_and_reports(compared, tmp_path):
    _, data, found = compared
    rows = list(csv.DictReader((found.folder / "comparison.csv").read_text().splitlines()))
    assert {row["factor se reduction"] for row in rows} == {"", "2", "4", "8"}
    levels = list(csv.DictReader((found.folder / "factors.csv").read_text().splitlines()))
    assert [row["level"] for row in levels if row["factor"] == "mechanism"] == ["se", "identity"]
    assert len(json.loads((found.folder / "grid.json").read_text())["families"][0]["labels"]) == 8
    again = fv.read_comparison(found.folder)
    assert again.factors == found.factors
    assert again.plan_rows() == found.plan_rows()
    page = fv.report(found, data, images=1, audited=0).read_text()
    assert "What varies" in page
    assert "se reduction: 8" in page
    page = fv.write_page(found, tmp_path / "page.md")[-1].read_text()
    assert "## What varies" in page
    assert "images/page_factors.svg" in page
    assert (tmp_path / "page_factors.csv").is_file()
    assert "reduction" in str(found.factors[1].text)


def test_the_terminal_shows_what_varies(compared, capsys):
    compared[2].print()
    shown = capsys.readouterr().out
    assert "What varies" in shown
    assert "mechanism: no" in shown


def test_too_many_plans_and_a_family_with_a_label(folder):
    model, data = timm.create_model("test_resnet", num_classes=2), fv.open_data(folder)
    recipe = fv.Recipe(epochs=0, batch_size=8, image_size=32)
    with pytest.raises(FoveateError, match="has 15 plans, and compare takes 8 at most.*most_plans"):
        fv.compare(model, "se after some of #0, #1, #2, #3", data, recipe, most_plans=8)
    with pytest.raises(FoveateError, match="no site 'layer9'"):
        fv.compare(model, "se after any of layer9, layer1.0", data, recipe)
    found = fv.compare(model, {"mine": "se|none after layer1.0|layer2.0"}, data, recipe, 1, progress=False)
    assert [row.label for row in found.rows] == ["none", "mine: se after layer1.0", "mine: se after layer2.0"]
    assert found.factors[0].levels[1].name == "none"
    assert found.factors[0].levels[1].plans == 1


def test_factors_of_another_comparison_do_not_stay_in_the_folder(compared, tmp_path):
    model, data, found = compared
    (tmp_path / "factors.csv").write_text("of a family")
    fv.compare(model, "ulsam after layer1.0", data, found.recipe, seeds=1, output=tmp_path, progress=False)
    assert not (tmp_path / "factors.csv").exists()
