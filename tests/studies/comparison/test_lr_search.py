"""Each plan gets the same trials, on training images alone, and its best learning rate."""

import pytest
import torch

import foveate as fv
from foveate.accounting.cost import Cost
from foveate.errors import FoveateError
from foveate.studies.comparison import scheduler as grid
from foveate.studies.comparison.lr_search import choose, tuning_data
from foveate.studies.comparison.run import RunResult

RECIPE = fv.Recipe(epochs=1, batch_size=8, image_size=32)
PLAN = "se after layer2.0"
RATES = (1e-4, 1e-2)


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    output, begun = tmp_path_factory.mktemp("tuned"), []
    with pytest.MonkeyPatch.context() as patch:
        fit = grid.fit
        patch.setattr(grid, "fit", lambda m, d, r, **k: (begun.append((d, r)), fit(m, d, r, **k))[1])
        found = fv.compare("test_resnet", PLAN, folder, RECIPE, 2, learning_rates=RATES, output=output, progress=False)
    return found, begun


def test_the_same_trials_for_every_plan(tuned):
    _, begun = tuned
    trials, runs = begun[:4], begun[4:]
    assert [recipe.learning_rate for _, recipe in trials] == [*RATES, *RATES]
    assert {recipe.seed for _, recipe in trials} == {0}
    assert len({data.fingerprint for data, _ in trials}) == 1
    assert len(runs) == 4


def test_validation_images_take_no_part_in_tuning(tuned, data):
    _, begun = tuned
    held = begun[0][0]
    shown = {*held.train.names, *held.val.names}
    assert shown == set(data.train.names)
    assert len(held.train) + len(held.val) == len(data.train)
    assert not set(held.train.names) & set(held.val.names)
    assert len(held.val) == 6  # a fifth of each class of 16, rounded
    assert begun[4][0].val.names == data.val.names


def test_each_plan_is_run_with_its_best(tuned):
    found, begun = tuned
    tuning = found.setup.tuning
    for label, scores in tuning.scores.items():
        assert tuning.chosen[label] == RATES[scores.index(max(scores))]
    assert [recipe.learning_rate for _, recipe in begun[4:]] == [tuning.chosen["none"], tuning.chosen[PLAN]] * 2
    assert [row.learning_rate for row in found.rows] == list(tuning.chosen.values())


def test_it_is_told_and_kept(tuned, capsys):
    found, _ = tuned
    assert "2 trials for each of 2 plans (4 in all), learning rates 0.0001, 0.01" in str(found.setup.tuning)
    assert fv.read_comparison(found.folder).setup == found.setup
    found.print()
    assert "Equal tuning budget" in capsys.readouterr().out


def result(top1):
    none = torch.empty(0, dtype=torch.int32)
    scores = {} if top1 is None else {"top1": top1}
    return RunResult(scores, Cost(0, 0, 0), none, none, 0.0, 0.0, {}, "NaN" if top1 is None else None)


def test_of_equals_the_first_and_never_one_that_diverged(data):
    trials = {"none": [result(None), result(50.0), result(50.0)], "se": [result(1.0), result(None), result(2.0)]}
    found = choose((3.0, 2.0, 1.0), trials, data, 0)
    assert found.chosen == {"none": 2.0, "se": 1.0}
    with pytest.raises(FoveateError, match="se diverged with every learning rate"):
        choose((3.0,), {"se": [result(None)]}, data, 0)


def test_no_image_to_hold_out(data):
    from dataclasses import replace

    with pytest.raises(FoveateError, match="no class with two training images"):
        tuning_data(replace(data, train=data.train.subset([0, 16])), 0)
