"""benchmarks/search_replay.py: the real halving on results that are there already."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import foveate as fv
from foveate.studies.comparison.protocol import run_table
from foveate.studies.comparison.run import Run, RunResult
from foveate.studies.search.halving import rungs_of

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "search_replay.py"


@pytest.fixture(scope="module")
def replay():
    spec = importlib.util.spec_from_file_location("search_replay", BENCHMARK)
    module = sys.modules["search_replay"] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["search_replay"]


def test_without_noise_the_best_of_the_drawn_plans_is_found(replay):
    truth = replay.simulated(1.0, np.random.default_rng(0))
    assert replay.halves_rho(truth.final) == pytest.approx(1)
    assert replay.plan_share(truth.final) == pytest.approx(1)
    for seed in range(3):
        drawn = [int(n) for n in np.random.default_rng(seed).permutation(24)]
        found, epochs = replay.search(truth, seed, drawn)
        rungs = rungs_of(truth.epochs)
        count = max(n for n in range(1, 25) if replay.halving_epochs(n, rungs) <= 24 * truth.epochs / 4)
        assert found == max(drawn[:count], key=lambda n: truth.final[n, 0])
        assert epochs == replay.halving_epochs(count, rungs) <= 24 * truth.epochs / 4


def test_noise_alone_has_no_order(replay):
    rng = np.random.default_rng(1)
    truths = [replay.simulated(0.0, rng) for _ in range(20)]
    assert abs(np.mean([replay.halves_rho(truth.final) for truth in truths])) < 0.15
    assert np.mean([replay.plan_share(truth.final) for truth in truths]) < 0.1
    found = replay.replay(truths[0], 4)
    assert found["share of the training"] <= 0.25
    assert all(0 <= found[name] <= 1 for name in ("halving", "random search", "last blocks"))


def test_truth_from_a_table_of_runs(replay, tmp_path):
    """Predictions that are right as often as the plan is good; a table that lacks a pause is refused."""
    plans, rng = ("se after blocks.5.1", "se after blocks.5.2"), np.random.default_rng(0)
    recipe = fv.Recipe(epochs=4)
    labels = torch.zeros(3000, dtype=torch.int32)
    rows = []
    for number, plan in enumerate(plans):
        for seed in range(3):
            for epochs in rungs_of(4):
                wrong = torch.from_numpy(rng.random(3000) > 0.2 + 0.3 * number + 0.1 * epochs).to(torch.int32)
                score = {"top1": 100 * float((wrong == 0).double().mean())}
                result = RunResult(score, fv.Cost(1, 1, 1), wrong, labels, 1.0, 1.0, {})
                run = Run("net pretrained=False", plan, None, recipe.with_(seed=seed), "")
                rows.append(run_table.row_of(run, result, 2, None if epochs == 4 else epochs))
                other = Run("net pretrained=False", plan, None, recipe.with_(seed=seed), "other data")
                rows.insert(0, run_table.row_of(other, result, 2, None if epochs == 4 else epochs))
    file = run_table.keep(tmp_path / "runs.csv", rows)
    protocol = fv.Protocol("toy", "data", "net", ("se after blocks.5.1|blocks.5.2",), 4, recipe)
    truth = replay.from_runs(str(file), protocol)
    assert truth.plans == plans
    np.testing.assert_allclose(truth.final, [[60] * 3, [90] * 3], atol=3)
    assert truth.judged(0, 1, 1) == pytest.approx(30, abs=4)
    run_table.keep(tmp_path / "fewer.csv", rows[:-1])
    with pytest.raises(
        fv.FoveateError,
        match="of 2 seeds, and 3 are needed: 1 are missing, the first one of se after blocks.5.2, seed 2",
    ):
        replay.from_runs(str(tmp_path / "fewer.csv"), protocol)
