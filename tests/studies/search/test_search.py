"""A search proposes within its budget, goes on where it was, and lets compare decide."""

import csv
import sys

import optuna
import pytest
import timm
import torch

import foveate as fv
from foveate.errors import FoveateError
from foveate.studies.comparison import scheduler
from foveate.studies.search import proposals
from foveate.studies.search.candidates import Candidate, Candidates
from foveate.studies.search.costs import Budget, CostTable
from foveate.studies.search.halving import Halving, rungs_of
from foveate.studies.search.proposals import default_storage, propose
from foveate.studies.search.results import Search, Trial
from foveate.studies.search.search import _survivors
from foveate.training.metrics import Diverged

RECIPE = fv.Recipe(epochs=2, batch_size=16, image_size=32, learning_rate=1e-3)
FAMILY = "ulsam(groups=1|4)|identity|se(reduction=1) after|replacing any of layer1.0"


def network():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5)


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("search")
    options = {"trials": 20, "finalists": 1, "seeds": 1, "output": output, "progress": False}
    model = network()
    rng = torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = fv.search(model, FAMILY, folder, RECIPE, {"macs": "+0.0%"}, **options)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return result, model, options


def test_every_plan_within_the_budget_is_tried(found):
    result, model, _ = found
    assert result.counts == (8, 0, 3)  # after layer1.0 three of four cost more than nothing
    assert len(result.trials) == 5
    assert all(trial.cost.macs <= result.baseline.macs for trial in result.trials)
    fv.insert(model, result.best.plan, input_size=32)
    assert fv.plan_of(fv.remove(model)) is None


def test_costs_are_those_of_the_networks_that_are_trained(found):
    result, _, _ = found
    row = result.comparison.rows[1]
    trial = next(trial for trial in result.trials if str(trial.plan) == row.label)
    assert (trial.cost.params, trial.cost.macs) == (row.cost.params, row.cost.macs)
    assert result.baseline.params == result.comparison.rows[0].cost.params


def test_a_third_goes_on_and_the_rest_is_paused(found):
    result, _, _ = found
    assert [trial.epochs for trial in result.trials] == [2, 2, 1, 1, 1]
    assert [sorted(trial.top1) for trial in result.trials] == [[1, 2]] * 2 + [[1]] * 3
    worst_of_the_best = min(trial.top1[1] for trial in result.trials[:2])
    assert all(trial.top1[1] <= worst_of_the_best for trial in result.trials[2:])


def test_the_comparison_has_other_seeds_and_all_training_images(found):
    result, _, _ = found
    assert RECIPE.seed not in result.comparison.seeds
    assert result.comparison.setup.train_images == 32
    assert [row.label for row in result.comparison.rows] == ["none", str(result.finalists[0])]
    assert "one seed" in result.verdict
    assert result.best.plan == result.finalists[0]


def test_the_same_call_again_reads_what_is_there(found, folder, monkeypatch):
    result, _, options = found
    written = (options["output"] / "search.csv").read_bytes()
    rows = list(csv.DictReader(written.decode().splitlines()))
    assert [row["plan"] for row in rows] == [str(trial.plan) for trial in result.trials]
    assert [row["finalist"] for row in rows].count("True") == 1
    monkeypatch.setattr(scheduler, "fit", lambda *_, **__: pytest.fail("trained"))
    again = fv.search(network(), FAMILY, folder, RECIPE, {"macs": "+0.0%"}, **options)
    assert [trial.top1 for trial in again.trials] == [trial.top1 for trial in result.trials]
    assert (options["output"] / "search.csv").read_bytes() == written


def test_the_search_in_words(found, capsys):
    found[0].print()
    shown = " ".join(capsys.readouterr().out.split())
    assert "The family has 8 plans: 0 do not fit the network, 3 are over the budget; 5 were tried" in shown
    assert "the validation images took no part" in shown
    assert f"Best: {found[0].best.plan}" in shown


def trial(plan, top1, macs, params=1, epochs=3):
    return Trial(fv.Plan.parse(f"{plan} after a"), cost(params, macs), {epochs: top1})


def cost(params, macs):
    return fv.Cost(params, macs, 0)


def test_the_front_is_what_nothing_beats():
    trials = [
        trial("se", 80, 100),
        trial("bam", 70, 50),
        trial("cbam", 70, 60),
        trial("double", 80, 100),
        trial("ulsam", 99, 10, epochs=1),
        Trial(fv.Plan.parse("danet after a"), cost(1, 1), {}, "diverged"),
    ]
    found = Search("f", Budget(), cost(1, 90), tuple(sorted(trials, key=lambda t: t.rank)), (), None, (6, 0, 0), 1, 1)
    assert [str(t.plan) for t in found.front] == ["se after a", "double after a", "bam after a"]
    assert str(found.trials[-1].plan) == "danet after a"
    assert found.as_dicts()[-1]["held_out_top1"] is None
    with pytest.raises(FoveateError, match="every trial of the search diverged"):
        _ = found.best


def test_rungs():
    assert rungs_of(9) == (1, 3, 9)
    assert rungs_of(8) == (1, 3, 8)
    assert rungs_of(2) == (1, 2)
    assert rungs_of(1) == (1,)
    assert rungs_of(100) == (12, 34, 100)


class Result:
    def __init__(self, top1):
        self.diverged = "NaN" if top1 is None else None
        self.scores = {} if top1 is None else {"top1": top1}
        self.seconds = 1.0


class Runs:
    """A grid whose runs have known results: of plan k after e epochs."""

    def __init__(self, result):
        self.result, self.done = result, []

    def complete(self, jobs):
        self.done += jobs
        return {job.run.name: Result(self.result(job.candidate, job.until)) for job in jobs}


class FakeJob:
    def __init__(self, candidate, until):
        self.candidate, self.until = candidate, until
        self.run = type("Run", (), {"name": str(candidate.plan)})


def numbered(count):
    return [Candidate(fv.Plan.parse(f"se after b{k}"), cost(k, k)) for k in range(count)]


def test_halving_keeps_the_best_and_never_one_that_diverged():
    runs = Runs(lambda candidate, until: None if candidate.cost.macs == 8 else candidate.cost.macs + until)
    halving = Halving(runs, FakeJob, (1, 3, 9))
    halving.halve(numbered(9), least=2)
    assert [(job.candidate.cost.macs, job.until) for job in runs.done[9:]] == [(7, 3), (6, 3), (5, 3), (7, 9), (6, 9)]
    ranked = sorted(halving.trials(), key=lambda t: t.rank)
    assert [t.cost.macs for t in ranked] == [7, 6, 5, 4, 3, 2, 1, 0, 8]
    assert ranked[-1].diverged == "NaN"
    assert halving.evaluate(numbered(9)[8]) is None


@pytest.fixture(scope="module")
def candidates():
    model = timm.create_model("test_resnet")
    family = "ulsam(groups=1|2|4|8)|se|none after some of #0, layer2.0, layer3.0, layer4.0 | layer1.0; gap|none as pool"
    family = fv.resolve_family(model, family, 32)
    return Candidates(family, CostTable(model, 32), Budget())


def test_tpe_asks_for_different_plans_that_are_allowed(candidates, tmp_path):
    asked = []

    def evaluate(candidate):
        asked.append(str(candidate.plan))
        return None if len(asked) == 3 else 50.0 + 10 * ("layer1.0" in asked[-1])

    options = {"name": "s", "storage": f"sqlite:///{tmp_path / 's.db'}", "seed": 0}
    found = propose(candidates, evaluate, 14, **options)
    assert len(asked) == len(set(asked)) == len(found) == 14
    assert [str(one.plan) for one in found] == asked
    assert all(candidates.allowed(one.plan) for one in found)
    more = propose(candidates, evaluate, 16, **options)  # goes on where it was
    assert len(asked) == 16
    assert more[:14] == found


def test_two_processes_may_make_the_storage_at_once(candidates, tmp_path, monkeypatch):
    times = []

    class Late(optuna.storages.RDBStorage):
        def __init__(self, *args, **kwargs):
            times.append(0)
            if len(times) < 3:
                raise optuna.exceptions.StorageInternalError("table studies already exists")
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(optuna.storages, "RDBStorage", Late)
    monkeypatch.setattr("time.sleep", lambda _: None)
    url = f"sqlite:///{tmp_path / 's.db'}"
    assert len(propose(candidates, lambda _: 1.0, 1, name="s", storage=url, seed=0)) == 1
    assert len(times) == 3


def test_what_a_dead_process_left_is_asked_again(candidates, tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "_BEAT", 1)
    monkeypatch.setattr(proposals, "_STALE", 1)
    left, asked = [], []

    def die(candidate):
        left.append(str(candidate.plan))
        raise KeyboardInterrupt  # a process that dies tells nothing

    options = {"name": "s", "storage": f"sqlite:///{tmp_path / 's.db'}", "seed": 0}
    with pytest.raises(KeyboardInterrupt):
        propose(candidates, die, 2, **options)
    study = optuna.load_study(study_name="s", storage=options["storage"])
    (running,) = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    old = "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"
    with study._storage._backend.engine.begin() as connection:
        connection.exec_driver_sql(old)
    propose(candidates, lambda candidate: asked.append(str(candidate.plan)) or 1.0, 2, **options)
    assert asked[0] == left[0]
    states = [trial.state.name for trial in study.get_trials()]
    assert states[running.number] == "FAIL"
    assert states.count("COMPLETE") >= 2


def test_the_categories_of_a_plan_give_the_plan(candidates):
    study = optuna.create_study()
    for seed in range(40):
        plan = candidates.family.sample(seed)
        study.enqueue_trial(proposals._parameters(plan, candidates.family))
        assert proposals._suggested(study.ask(), candidates.family) == plan


def test_a_small_rest_is_found_where_tpe_repeats_itself(tmp_path):
    model = timm.create_model("test_resnet")
    family = fv.resolve_family(model, "se|none after #0; se|none after layer2.0; se|none after layer3.0", 32)
    few = Candidates(family, CostTable(model, 32), Budget())
    found = propose(few, lambda _: 1.0, 7, name="s", storage="", seed=0)
    assert len(found) == 7  # all there are, and more are not waited for
    assert len(propose(few, lambda _: 1.0, 8, name="s", storage="", seed=0)) == 7


def test_errors(folder, candidates, tmp_path, monkeypatch):
    for options, message in (
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"trials": 0}, "trials=0: at least 1"),
        ({"recipe": RECIPE.with_(epochs=0)}, "at least one epoch"),
        ({"budget": {"macs": 10}}, "no plan of the family keeps the budget"),
    ):
        with pytest.raises(FoveateError, match=message):
            fv.search(network(), FAMILY, folder, **{"recipe": RECIPE, "progress": False, **options})
    with pytest.raises(FoveateError, match="storage 'db.invalid:1/x' cannot be opened"):
        propose(candidates, lambda _: 1.0, 2, name="s", storage="nosuchdatabase://me:secret@db.invalid:1/x", seed=0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(FoveateError, match="pip install 'foveate\\[search\\]'.*sampler='random'"):
        propose(candidates, lambda _: 1.0, 2, name="s", storage="", seed=0)


def test_a_budget_of_latency_is_for_the_best_alone(folder, monkeypatch, tmp_path):
    timed = []

    def latency(model, *_, **__):
        timed.append(str(fv.plan_of(model)))
        ratio = type("Quantiles", (), {"median": 2.0 if len(timed) == 1 else 1.0})
        return type("Latency", (), {"timings": [type("Timing", (), {"ratio": ratio})]})

    monkeypatch.setattr("foveate.studies.search.search.latency", latency)
    recipe = RECIPE.with_(epochs=1)
    options = {"sampler": "random", "trials": 4, "finalists": 1, "seeds": 0, "progress": False}
    found = fv.search(network(), FAMILY, folder, recipe, {"latency": "+50%"}, output=tmp_path, **options)
    assert len(found.trials) == 4
    assert [str(plan) for plan in found.finalists] == timed[1:] == [str(found.trials[1].plan)]
    assert found.trials[0].latency == 2.0
    assert "not compared" in found.verdict
    timed.clear()
    with pytest.raises(FoveateError, match="no plan keeps the budget of latency.*the fastest of 4 takes 1 times"):
        fv.search(network(), FAMILY, folder, recipe, {"latency": "-10%"}, output=tmp_path, **options)


def test_a_plan_that_diverges_later_is_no_finalist_and_on_no_front():
    runs = Runs(
        lambda candidate, until: None if candidate.cost.macs == 8 and until > 1 else candidate.cost.macs + until
    )
    halving = Halving(runs, FakeJob, (1, 3))
    halving.halve(numbered(9), least=1)
    tried = sorted(halving.trials(), key=lambda t: t.rank)
    assert tried[-1].cost.macs == 8
    assert tried[-1].top1 == {1: 9}
    assert tried[-1].score is None
    _, best = _survivors(tried, 3, Budget(), None, None)
    assert [t.cost.macs for t in best] == [7, 6, 5]
    found = Search("f", Budget(), cost(1, 90), tuple(tried), (), None, (9, 0, 0), 1, 1)
    assert all(t.diverged is None for t in found.front)
    assert found.as_dicts()[-1]["held_out_top1"] is None
    early = [trial("se", 80, 100, epochs=1), Trial(fv.Plan.parse("bam after a"), cost(1, 1), {1: 90.0, 3: 91.0}, "NaN")]
    _, best = _survivors(sorted(early, key=lambda t: t.rank), 1, Budget(), None, None)
    assert [str(t.plan) for t in best] == ["se after a"]


def test_the_trials_are_written_before_anything_can_go_wrong_after_them(folder, tmp_path, monkeypatch):
    def diverged(*_, **__):
        raise Diverged("the loss is NaN")

    monkeypatch.setattr("foveate.studies.search.search.compare", diverged)
    options = {"trials": 2, "finalists": 1, "seeds": 1, "sampler": "random", "output": tmp_path, "progress": False}
    with pytest.raises(Diverged):
        fv.search(network(), FAMILY, folder, RECIPE.with_(epochs=1), **options)
    rows = list(csv.DictReader((tmp_path / "search.csv").read_text().splitlines()))
    assert [row["finalist"] for row in rows] == ["True", "False"]


def test_processes_that_share_a_study_choose_the_same_plans(candidates, tmp_path):
    """One process trains its first plan so long that the other has told enough before."""
    options = {"name": "s", "storage": f"sqlite:///{tmp_path / 's.db'}", "seed": 0}
    other = []

    def slow(_):
        other.append(propose(candidates, lambda _: 1.0, 3, **options))
        return 2.0

    assert propose(candidates, slow, 3, **options) == other[0]
    assert propose(candidates, lambda _: pytest.fail("trained"), 3, **options) == other[0]


@pytest.mark.parametrize("name", ["plain", "a?b=c", "a%20b", "a b", "a#b", "é"])
def test_the_storage_is_in_the_folder_whatever_it_is_called(name, candidates, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    propose(candidates, lambda _: 1.0, 1, name="s", storage=default_storage(folder), seed=0)
    assert (folder / "search.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
