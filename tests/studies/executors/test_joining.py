"""Workers join a call, and whatever becomes of them the call ends with all its runs."""

import concurrent.futures
import logging
import sys
from pathlib import Path

import pytest

import foveate as fv
from foveate.errors import FoveateError
from foveate.studies.executors import engines
from foveate.studies.executors.engines import open_engine
from foveate.studies.executors.joining import joined

RECIPE = fv.Recipe(epochs=1, batch_size=16, image_size=32, learning_rate=1e-3)


def note(output, data, progress, name="note"):
    """What a worker calls here."""
    with (Path(output) / name).open("a") as file:
        file.write(f"{Path(data).is_absolute()} {progress}\n")
    return 3


def fail(**_):
    raise ValueError("this worker does not work")


class Kept:
    """An executor that keeps what it is given, and runs it or not."""

    def __init__(self, run):
        self.run, self.futures, self.given = run, [], []

    def submit(self, fn, /, *args):
        future = concurrent.futures.Future()
        self.given.append((fn, args))
        if self.run:
            try:
                future.set_result(fn(*args))
            except Exception as error:  # noqa: BLE001 - as an executor does
                future.set_exception(error)
        self.futures.append(future)
        return future


def test_workers_make_the_same_call_on_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    executor = Kept(run=True)
    with joined(executor, 2, note, {"output": ".", "data": "images"}):
        pass
    assert (tmp_path / "note").read_text() == "True False\nTrue False\n"
    assert len(executor.futures) == 2


def test_what_has_not_begun_is_cancelled_and_what_failed_is_said(tmp_path, caplog):
    waiting, broken = Kept(run=False), Kept(run=True)
    with joined(waiting, None, note, {"output": tmp_path, "data": "elpv"}):
        pass
    assert [future.cancelled() for future in waiting.futures] == [True]
    with caplog.at_level(logging.WARNING, "foveate"), joined(broken, 3, fail, {"output": tmp_path, "data": "elpv"}):
        pass
    assert caplog.text.count("a worker was lost, and the others did its work: this worker does not work") == 3


def test_an_error_of_this_process_cancels_the_workers(tmp_path):
    waiting = Kept(run=False)
    with pytest.raises(KeyboardInterrupt), joined(waiting, 2, note, {"output": tmp_path, "data": "elpv"}):
        raise KeyboardInterrupt
    assert all(future.cancelled() for future in waiting.futures)


def test_processes_start_and_end(tmp_path):
    with open_engine("processes:3", tmp_path) as engine:
        assert engine.workers == 2
        done = engine.executor.submit(note, str(tmp_path), str(tmp_path), False)
        done._process.join()
        assert done.done()
        assert done.exception() is None
        ended = engine.executor.submit(sys.exit, 3)
        ended._process.join()
        assert "ended with 3" in str(ended.exception())
    assert (tmp_path / "note").is_file()


def test_an_executor_of_pythons_own(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(3) as pool, open_engine(pool, tmp_path) as engine:
        assert engine.workers == 3
        assert engine.name == "ThreadPoolExecutor"


@pytest.mark.parametrize(
    "executor,message",
    [
        (3, "executor=3 has no submit"),
        ("proceses:4", "did you mean 'processes'.*dask://HOST:PORT"),
        ("processes:1", "N at least 2"),
        ("processes:x", "N at least 2"),
        ("dask://127.0.0.1:9", "foveate\\[dask\\]"),
        ("slurm:gpu", "foveate\\[slurm\\]"),
        ("ray://127.0.0.1:9", "foveate\\[ray\\]"),
    ],
)
def test_executors_that_cannot_be_opened(executor, message, tmp_path, monkeypatch):
    for name in ("distributed", "submitit", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FoveateError, match=message), joined(executor, None, note, {"output": tmp_path, "data": "x"}):
        pytest.fail("it was opened")


def test_what_is_asked_of_the_caller(tmp_path):
    for request, workers, message in (
        ({"output": None, "data": "x"}, None, "needs output="),
        ({"output": tmp_path, "data": "x"}, 0, "workers=0: at least 1"),
    ):
        with pytest.raises(FoveateError, match=message), joined(Kept(run=False), workers, note, request):
            pytest.fail("it was opened")

    class Refuses:
        def submit(self, fn, *args):
            raise RuntimeError("cannot schedule new futures after shutdown")

    with (
        pytest.raises(FoveateError, match="Refuses takes no work: cannot schedule new futures"),
        joined(Refuses(), 1, note, {"output": tmp_path, "data": "x"}),
    ):
        pytest.fail("it was opened")


def test_the_options_of_slurm(tmp_path, monkeypatch):
    class SlurmExecutor:
        def __init__(self, folder, max_num_timeout):
            self.folder, self.parameters = folder, {}

        def update_parameters(self, **parameters):
            self.parameters |= parameters

        def submit(self, fn, /, *args):
            raise NotImplementedError

    monkeypatch.setattr(engines, "_package", lambda *_: type("submitit", (), {"SlurmExecutor": SlurmExecutor}))
    with open_engine("slurm:gpu,time=240,gpus_per_node=1,account=me", tmp_path) as engine:
        assert engine.executor.parameters == {"partition": "gpu", "time": 240, "gpus_per_node": 1, "account": "me"}
        assert engine.executor.folder == tmp_path / "slurm"
        assert engine.workers == 1
    for text in ("slurm:", "slurm:gpu,time"):
        with pytest.raises(FoveateError, match="write slurm:PARTITION"), open_engine(text, tmp_path):
            pytest.fail("it was opened")


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    fv.compare("test_resnet", "se after layer2.0", folder, RECIPE, 2, output=output, progress=False)
    return output


@pytest.mark.parametrize("run", [True, False])
def test_compare_with_workers_gives_what_it_gives_alone(folder, alone, tmp_path, run):
    """A worker does all of it, or none of it."""
    executor = Kept(run)
    options = {"output": tmp_path, "progress": False, "executor": executor}
    found = fv.compare("test_resnet", "se after layer2.0", str(folder), RECIPE, 2, **options)
    assert len(executor.futures) == 1
    assert executor.futures[0].cancelled() is not run
    for name in ("comparison.csv", "runs.csv"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()
    assert found.folder == tmp_path


def test_search_takes_workers(folder, tmp_path):
    executor = Kept(run=True)
    options = {"finalists": 1, "seeds": 0, "output": tmp_path, "progress": False, "executor": executor, "workers": 1}
    found = fv.search("test_resnet", "se|bam after layer2.0", str(folder), RECIPE, **options)
    assert executor.futures[0].exception() is None
    assert len(found.trials) == 2
    (_, arguments), *_ = executor.given
    assert arguments[1]["data"] == str(folder)
    assert "executor" not in arguments[1]


class Ray:
    """What is used of Ray, in this process."""

    def __init__(self, connected):
        self.connected, self.log = connected, []

    def is_initialized(self):
        return self.connected

    def init(self, address, log_to_driver):
        self.log.append(("init", address))

    def shutdown(self):
        self.log.append("shutdown")

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 3.0}}, {"Alive": False, "Resources": {"CPU": 9.0}}]

    def remote(self, **options):
        assert options == {"max_retries": 3}
        return lambda fn: type("Remote", (), {"remote": lambda *args: (fn, args)})

    def wait(self, references, timeout):
        return references, []

    def get(self, reference):
        fn, args = reference
        return fn(*args)

    def cancel(self, reference, force):
        self.log.append("cancel")


@pytest.mark.parametrize("connected", [False, True])
def test_ray_is_connected_and_left_as_it_was(connected, tmp_path, monkeypatch, caplog):
    ray = Ray(connected)
    monkeypatch.setattr(engines, "_package", lambda *_: ray)
    with caplog.at_level(logging.WARNING, "foveate"), joined("ray:", None, fail, {"output": tmp_path, "data": "x"}):
        pass
    assert caplog.text.count("this worker does not work") == 3  # one for each processor that lives
    assert ray.log == ([] if connected else [("init", None), "shutdown"])


def test_data_that_have_a_name_keep_it(tmp_path, monkeypatch):
    """Whatever folders there are: `elpv` is the packaged data set in this process and in its workers."""
    monkeypatch.chdir(tmp_path)
    for name in ("elpv", "hf:owner"):
        Path(name).mkdir()
        with joined(Kept(run=True), 1, note, {"output": ".", "data": name, "name": f"note {name}"}):
            pass
        assert (tmp_path / f"note {name}").read_text() == "False False\n"
