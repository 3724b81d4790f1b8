"""A grid that is killed, shared or run again ends with the same table, and no finished run is run twice."""

import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch

import foveate as fv
from foveate.errors import FoveateError
from foveate.studies.comparison import scheduler as grid
from foveate.studies.comparison.networks.maker import Maker
from foveate.studies.comparison.run import Run, digest_of
from foveate.studies.search.search import _study_name

SCRIPT = Path(__file__).parent / "killed_grid.py"
RECIPE = fv.Recipe(epochs=1, batch_size=8, image_size=32, learning_rate=1e-3)
PLAN = "se after layer2.0"

killed_grids = pytest.mark.slow(
    reason="three grids of four trainings, one of them killed three times; test_cli.py shares one by two processes",
    guards=(
        "foveate/studies/comparison/",
        "foveate/training/",
        "foveate/io.py",
        "tests/studies/comparison/killed_grid.py",
    ),
)


@pytest.fixture(scope="module")
def grids(folder, tmp_path_factory, last_line):
    place = tmp_path_factory.mktemp("grids")
    return place, last_line(SCRIPT, folder, place, "0")


def tables(folder):
    return {name: (folder / name).read_bytes() for name in ("comparison.csv", "runs.csv", "grid.json")}


@killed_grids
def test_killed_three_times_it_ends_with_the_same_table(grids):
    place, codes = grids
    assert codes["whole"] == [0]
    assert codes["killed"] == [-signal.SIGKILL] * 3 + [0]
    assert tables(place / "killed") == tables(place / "whole")
    predictions = "runs/*/predictions.safetensors"
    for path in (place / "whole").glob(predictions):
        assert (place / "killed" / path.relative_to(place / "whole")).read_bytes() == path.read_bytes()
    # Only what was running was begun again: three kills, at most three more trainings than runs.
    begun = Counter((place / "killed.log").read_text().split())
    assert len(begun) == 4
    assert sum(begun.values()) <= 7
    assert list((place / "killed").glob("runs/*/claim.1"))


@killed_grids
def test_two_processes_share_a_grid(grids):
    place, codes = grids
    assert codes["shared"] == [0, 0]
    assert tables(place / "shared") == tables(place / "whole")
    begun = Counter((place / "shared.log").read_text().split())
    assert set(begun.values()) == {1}
    assert len(begun) == 4


def compare(folder, output, **changes):
    return fv.compare("test_resnet", PLAN, folder, RECIPE, output=output, progress=False, **{"seeds": 1, **changes})


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("done")
    compare(folder, output)
    return output


def test_a_finished_grid_is_read(folder, done, monkeypatch):
    monkeypatch.setattr(grid, "fit", lambda *_, **__: pytest.fail("trained"))
    before = tables(done)
    compare(folder, done)
    assert tables(done) == before


def test_more_seeds_and_plans_keep_the_finished_runs(folder, done, monkeypatch):
    begun, fit = [], grid.fit
    monkeypatch.setattr(grid, "fit", lambda *a, **k: (begun.append(k["output"].parent.name), fit(*a, **k))[1])
    compare(folder, done, seeds=2)
    assert sorted(name.split("-")[1] for name in begun) == ["seed1", "seed1"]


def run(**changes):
    values = {"network": "net", "plan": PLAN, "start": None, "recipe": RECIPE, "data": "abc"}
    return Run(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "other"},
        {"plan": "se after layer2.1"},
        {"start": "identity"},
        {"data": "abd"},
        *({"recipe": RECIPE.with_(**change)} for change in ({"epochs": 2}, {"seed": 1}, {"learning_rate": 1e-2})),
    ],
)
def test_what_decides_a_result_is_in_its_name(changes):
    assert run(**changes).name != run().name


def test_what_does_not_decide_it_is_not():
    assert run(recipe=RECIPE.with_(workers=2, checkpoint_every=5)).name == run().name


def test_a_name_is_readable_and_stable():
    assert run().name.startswith("se_after_layer2.0-seed0-")
    assert run().name == run().name


def test_digest_of_a_network():
    def net(seed, width=4, stride=1):
        torch.manual_seed(seed)
        return torch.nn.Conv2d(3, width, 3, stride)

    assert digest_of(net(0)) == digest_of(net(0))
    assert len({digest_of(net(*args)) for args in [(0,), (1,), (0, 5), (0, 4, 2)]}) == 4


def test_digest_of_a_network_holds_what_its_modules_hold():
    class Scaled(torch.nn.Identity):
        pass

    def net(factor, hidden):
        module = Scaled()
        module.factor = factor
        module.register_buffer("hidden", torch.tensor(hidden), persistent=False)
        return torch.nn.Sequential(module)

    assert digest_of(net(1.0, 2.0)) == digest_of(net(1.0, 2.0))
    assert len({digest_of(net(*args)) for args in [(1.0, 2.0), (3.0, 2.0), (1.0, 4.0)]}) == 3


def test_a_damaged_result_says_what_to_do(folder, done):
    path = next(done.glob("runs/none-seed0-*/predictions.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FoveateError, match=r"is damaged .*: delete .*result\.json"):
        compare(folder, done)
    path.write_bytes(whole)


def test_a_deleted_result_is_made_again_from_the_checkpoint(folder, done):
    path = next(done.glob("runs/none-seed0-*/result.json"))
    before = json.loads(path.read_text())
    path.unlink()
    compare(folder, done)
    after = json.loads(path.read_text())
    assert after["predictions_sha256"] == before["predictions_sha256"]
    assert after["folder"] == "attempt.1"
    assert before["seconds"] == after["seconds"]  # nothing was trained again


def test_a_comparison_is_read_from_its_folder_alone(folder, done):
    made = compare(folder, done)
    read = fv.read_comparison(done)
    assert read.as_dicts() == made.as_dicts()
    assert len(read.models) == 0


def test_reading_what_is_not_there_or_not_finished(done, tmp_path):
    with pytest.raises(FoveateError, match="holds no comparison"):
        fv.read_comparison(tmp_path)
    (tmp_path / "grid.json").write_text((done / "grid.json").read_text())
    with pytest.raises(FoveateError, match="0 of 2 runs are finished"):
        fv.read_comparison(tmp_path)
    (tmp_path / "grid.json").write_text("{")
    with pytest.raises(FoveateError, match="is damaged"):
        fv.read_comparison(tmp_path)


def test_a_run_that_diverges_is_told_and_not_tried_again(folder, tmp_path, monkeypatch):
    recipe = RECIPE.with_(learning_rate=1e30, optimiser="sgd", epochs=3)

    def again():
        fv.compare("test_resnet", PLAN, folder, recipe, 1, output=tmp_path, progress=False)

    with pytest.raises(FoveateError, match="none, seed 0: .*learning rate"):
        again()
    monkeypatch.setattr(grid, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(FoveateError, match="none, seed 0: .*learning rate"):
        again()


def test_a_teacher_from_a_folder_is_named_by_its_weights_and_not_by_its_place(folder, tmp_path):
    data = fv.open_data(folder)

    def names(teacher):
        maker, recipe = Maker("test_resnet", False, None), RECIPE.with_(teacher=str(teacher))
        study = _study_name(maker, recipe, data, maker.code([], recipe))
        return maker.job("", None, recipe, data).run.name, study

    fv.save(fv.create_model("test_resnet", num_classes=2), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    before = names(tmp_path / "one")
    assert names(tmp_path / "other") == before
    shutil.rmtree(tmp_path / "one")
    fv.save(fv.create_model("test_resnet", num_classes=2), tmp_path / "one")  # other weights
    assert not set(names(tmp_path / "one")) & set(before)
    with pytest.raises(FoveateError, match="absent"):
        names(tmp_path / "absent")


def test_the_name_of_a_run_holds_all_that_decides_what_a_network_gives():
    """Also what torch's and timm's modules hold and do not print."""

    def network(**changes):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=2, **changes)
        return model, digest_of(model)

    model, plain = network()
    assert network()[1] == plain
    model.eval()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert digest_of(model.train()) == plain  # that it ran is nothing
    assert network(drop_rate=0.9)[1] != plain
    for change in (
        lambda: model.conv1.requires_grad_(False),
        lambda: model.pretrained_cfg.update(mean=(0.0, 0.0, 0.0)),
        lambda: setattr(model.layer1[0].bn1, "momentum", 0.5),
    ):
        before = digest_of(model)
        change()
        assert digest_of(model) != before
    detectors = [fv.create_detector("resnet18", f"faster_rcnn(anchor={anchor})", classes=("a",)) for anchor in (16, 64)]
    detectors[1].load_state_dict(detectors[0].state_dict())
    assert digest_of(detectors[0]) != digest_of(detectors[1])
