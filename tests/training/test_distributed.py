"""Two real processes that talk by gloo: the same result as one, exact resume, and an end in bounded time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from foveate.errors import FoveateError
from foveate.training.fit import fit
from foveate.training.input.sampler import Order, of_whole
from foveate.training.restore import synchronised

SCRIPT = Path(__file__).parent / "two_processes.py"
SAME = {"batch_size": 2, "accumulate": 2, "ema_decay": 0.5, "gradient_clip": 0.5, "label_smoothing": 0.1}
BROKEN = {"norm": True, "checkpoint_every": 3, "ema_decay": 0.5, "mixup": 0.4, "batch_size": 4}
FAULTS = ("SIGKILL", "SIGSTOP")  # of the other process: it is killed, or hangs


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **more}


def run_pairs(*jobs: tuple[Path, dict, str]) -> list[list[int]]:
    """Run pairs of processes, one pair after the other; the exit codes of each."""
    texts = [(str(folder), json.dumps(changes), fault) for folder, changes, fault in jobs]
    command = [sys.executable, str(SCRIPT), json.dumps(texts)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The folders of pairs by name, and how their processes ended."""
    root = tmp_path_factory.mktemp("pairs")
    jobs = {"same": (root / "same", SAME, ""), "whole": (root / "whole", BROKEN, "")}
    for fault in FAULTS:
        jobs[fault] = (root / fault, BROKEN, fault)
        jobs[f"{fault}, resumed"] = (root / fault, {**BROKEN, "resume": True}, "")
    codes = dict(zip(jobs, run_pairs(*jobs.values()), strict=True))
    return root, codes


def log(folder: Path, rank: int) -> str:
    return (folder / f"stderr{rank}").read_text()


def result(folder: Path, rank: int = 0):
    return load_file(folder / f"weights{rank}"), *json.loads((folder / f"result{rank}").read_text())


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes"), [(4, 1, 2), (2, 2, 2), (1, 3, 2), (3, 2, 3), (7, 1, 4)]
)
def test_shares_make_up_the_steps_of_one_process(batch_size, accumulate, processes):
    count, step = 31, batch_size * accumulate * processes
    whole = Order(count, step, 5, 2)
    parts = [
        Order(count, batch_size, 5, 2, accumulate=accumulate, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    streams = [iter(part) for part in parts]
    for epoch, expected in ((epoch, at) for epoch in range(2) for at in range(parts[0].steps_per_epoch)):
        got = []
        for part, stream in zip(parts, streams, strict=True):
            batches = [next(stream) for _ in range(part.batches(expected))]
            assert all(len(batch) <= batch_size + 1 for batch in batches)
            assert batch_size == 1 or all(len(batch) > 1 for batch in batches)
            got += [where for batch in batches for where in batch]
        assert len(got) == parts[0].images(expected)
        assert sorted(got) == sorted(list(whole)[epoch * whole.steps_per_epoch + expected])
    assert parts[0].steps_per_epoch == whole.steps_per_epoch
    assert all(next(stream, None) is None for stream in streams)


def test_every_image_is_evaluated_once():
    rows = [batch for rank in range(3) for batch in of_whole(10, 2, rank, 3)]
    assert sorted(index for batch in rows for _, index in batch) == list(range(10))
    assert of_whole(1, 4, 1, 2) == []


def test_two_processes_train_as_one_with_the_same_global_batch(pairs, data, new_plain_net, recipe):
    folder = pairs[0] / "same"
    assert pairs[1]["same"] == [0, 0], log(folder, 0) + log(folder, 1)
    assert "2 processes on cpu, 8 images in a step" in log(folder, 0)
    assert log(folder, 1) == ""
    weights, rows, probabilities = result(folder)
    assert equal(weights, result(folder, 1)[0])
    assert result(folder, 1)[1:] == (rows, probabilities)

    model = new_plain_net()
    alone = fit(model, data, recipe.with_(**(SAME | {"batch_size": 8, "accumulate": 1})), progress=False)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.tensor(probabilities), alone.evaluation.probabilities, rtol=1e-4, atol=1e-6)
    for row, expected in zip(rows, alone.history, strict=True):
        assert row == pytest.approx({key: expected[key] for key in row}, rel=1e-4)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lost_process_ends_the_run_and_resume_gives_the_same_bits(pairs, fault):
    """Without torchrun, which would end the other in any case."""
    root, codes = pairs
    folder, whole = root / fault, root / "whole"
    assert codes["whole"] == [0, 0], log(whole, 0) + log(whole, 1)
    # This script does not catch the error; the command line exits with 4.
    assert codes[fault] == [1, -signal.SIGKILL]
    lost = "foveate.training.distributed.ProcessLost: another of the 2 processes has ended or hangs"
    assert lost in log(folder, 0)
    assert codes[f"{fault}, resumed"] == [0, 0], log(folder, 0) + log(folder, 1)
    assert equal(result(folder)[0], result(whole)[0])
    assert result(folder)[1:] == result(whole)[1:]


@pytest.mark.slow(
    reason="torchrun starts two Pythons for each fault and waits for them; the faults themselves are tested above",
    guards=("foveate/training/", "tests/training/two_processes.py"),
)
@pytest.mark.parametrize(("fault", "seconds"), [("SIGKILL", 180), ("SIGSTOP", 220)])
def test_torchrun_leaves_no_process_behind_and_resume_gives_the_same_bits(tmp_path, pairs, fault, seconds):
    """It waits, by default for 30 s, before it kills a process that hangs."""
    folder, whole = tmp_path / "broken", pairs[0] / "whole"
    folder.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, str(SCRIPT), str(folder), json.dumps(BROKEN), fault]
    began = time.monotonic()
    patience = environment(TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3")
    ended = subprocess.run(command, env=patience, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode not in (0, None)
    assert time.monotonic() - began < seconds
    pids = [int((folder / f"pid{rank}").read_text()) for rank in range(2)]
    assert not any(alive(pid) for pid in pids)
    if fault == "SIGSTOP":
        assert "another of the 2 processes has ended or hangs" in ended.stderr

    assert run_pairs((folder, {**BROKEN, "resume": True}, "")) == [[0, 0]]
    assert equal(result(folder)[0], result(whole)[0])
    assert result(folder)[1:] == result(whole)[1:]


def test_synchronised_batch_norm_is_put_back():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    modules = list(net.modules())
    with synchronised(net):
        assert [type(m).__name__ for m in net.modules()].count("SyncBatchNorm") == 2
        assert net[1].weight is modules[2].weight
    assert list(net.modules()) == modules
    net[1].register_forward_hook(print)
    with pytest.raises(FoveateError, match="hangs on the BatchNorm layer '1'"), synchronised(net):
        pass
